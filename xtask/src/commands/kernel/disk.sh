#!/bin/sh
# Makes the guest's disk, as a file that is standard input. Runs in a mount namespace of its own: what is mounted here
# goes with it, and nothing of the cache is copied or changed.
# In: TB_STAGE (an empty directory), TB_TREE and TB_IMAGES (directories of the testbed's cache), TB_MODULES,
#     TB_TESTS and TB_PROGRAM (files), TB_GUEST and TB_SETTINGS (texts), TB_SIZE.
set -eu
tree=cache/$(basename "$TB_TREE")/root
images=cache/images/$(basename "$TB_IMAGES")

mount -t tmpfs -o mode=755 stage "$TB_STAGE"
cd "$TB_STAGE"
mkdir -p bin modules over/upper over/work state tmp "$tree" "$images"
chmod 1777 tmp
ln -s "$tree" tree
mount --bind "$TB_TREE/root" "$tree"
mount --bind "$TB_MODULES" modules
# The small images: the others would double the disk.
for image in busybox-1 python-1 state-1; do
    : > "$images/$image.tar"
    mount --bind "$TB_IMAGES/$image.tar" "$images/$image.tar"
done
# Most of a test build are symbols.
strip -o bin/e2e "$TB_TESTS" || cp "$TB_TESTS" bin/e2e
strip -o bin/tranship "$TB_PROGRAM" || cp "$TB_PROGRAM" bin/tranship
printf '%s' "$TB_GUEST" > guest
printf '%s' "$TB_SETTINGS" > settings
chmod 755 guest bin/*
# No journal: nobody looks at the disk afterwards.
mkfs.ext4 -q -F -m 0 -O ^has_journal -E lazy_itable_init=1,root_owner=0:0 -d . /proc/self/fd/0 "$TB_SIZE"
