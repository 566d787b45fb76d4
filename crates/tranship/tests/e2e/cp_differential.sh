# One form of `docker cp` and of `tranship cp`, each from the same state. In: $BUILD makes a tree where it runs, $FORM is the rest of
# the command with @ for the container, $OPTIONS are tranship's own. Out: how each ended and what was there afterwards, in
# /srv/seen.docker and /srv/seen.tranship.

list() {
    # Times of what was made just now are not compared.
    (cd "$1" && { find . -type d -printf '%P|d|%m|%U:%G|%T@\n'; find . ! -type d -printf '%P|%y|%m|%U:%G|%T@|%l|%n\n'; }) |
        awk -F'|' -v OFS='|' '$5 > 1500000000 { $5 = "now" } { print }' | LC_ALL=C sort
    (cd "$1" && find . -type f -exec md5sum {} + | LC_ALL=C sort)
}
for program in docker tranship; do
    pid=$(cat /srv/pid.$program)
    inside=/proc/$pid/root/w
    rm -rf /srv/h "$inside"; mkdir -p /srv/h "$inside"
    (cd /srv/h && eval "$BUILD"; cd "$inside" && eval "$BUILD_INSIDE")
    cd /srv/h || exit 1
    options=; [ $program = docker ] || options=$OPTIONS
    eval "timeout 30 $program cp $options $(echo "$FORM" | sed "s/@/c$program/g")" >/srv/said.$program 2>&1 </dev/null
    code=$?
    cd /
    { echo "ended with $code"; echo "-- here"; list /srv/h; echo "-- inside"; list "$inside"; } >/srv/seen.$program
done
diff -u /srv/seen.docker /srv/seen.tranship && exit 0
cat /srv/said.docker /srv/said.tranship
exit 1
