# Runs at the other end, as one line in single quotes of whatever login shell is there. So: POSIX sh only, every line
# ends where a blank may follow, and there is no single quote, no backslash and no exclamation mark outside comments.
# Words between at signs are filled in. What the other side reads begins with the magic word; the rest is noise.
umask 077;
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export PATH;
u=$(id -u); t=; b=;
say() { printf "%s" "@MAGIC@ $*"; echo; };
tidy() { [ -n "$t" ] && rm -f "$t"; t=; };
fail() { tidy; say error "$@"; exit 0; };
trap tidy EXIT; trap "exit 1" HUP INT TERM;
have() { command -v "$1" >/dev/null 2>&1; };
hash() {
if have sha256sum; then sha256sum <"$1";
elif have shasum; then shasum -a 256 <"$1";
elif have openssl; then openssl dgst -sha256 -r <"$1";
elif have busybox; then busybox sha256sum <"$1";
else echo none; fi 2>/dev/null | cut -c1-64; };
# A directory of our own, not a link to one.
own() { [ -n "$(find "$1" -prune -type d -user "$u" 2>/dev/null)" ]; };
c=${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/tranship/bin;
f=@FALLBACK@/tranship-$u;
found=;
for d in "$c" "$f"; do
if own "$d" && [ -f "$d/@NAME@" ] && [ "$(hash "$d/@NAME@")" = @HASH@ ]; then found=$d/@NAME@; break; fi;
done;
echo;
say os "$(uname -s)"; say arch "$(uname -m)";
i=$(command -v tranship 2>/dev/null);
[ -n "$i" ] && say installed "$("$i" agent --version-line </dev/null 2>/dev/null | head -n 1 | cut -c1-200)";
[ -n "$found" ] && say cached "$found";
say decide;
# The directory, then the last line of df, whose fourth field is what is free; no number means that it is not known.
room() { [ "$5" -lt $((size / 1024 + 64)) ] 2>/dev/null && return 1; return 0; };
# Makes a temporary file where programs may be kept and run, or says in w why not.
usable() {
w="$(mkdir -p "$1" 2>&1)" || return 1;
own "$1" || { w="$1 belongs to another user or is a link"; return 1; };
chmod 700 "$1" 2>/dev/null;
room "$1" $(df -P -k "$1" 2>/dev/null | tail -n 1) || { w="no space left in $1"; code=no-space; return 1; };
t=$(mktemp "$1/.upload.XXXXXX" 2>&1) || { w=$t; t=; return 1; };
chmod 700 "$t";
"$t" </dev/null >/dev/null 2>&1 || { w="programs may not be run from $1"; code=no-exec; tidy; return 1; };
d=$1; };
upload() {
code=no-directory;
usable "$c" || { v=$w; usable "$f" || fail $code "$v; $w"; };
say send "$d";
e=$(LC_ALL=C head -c "$size" 2>&1 >"$t");
n=$(wc -c <"$t");
[ "$n" -eq "$size" ] || case "$e" in
*pace*|*uota*) fail no-space "$e";;
"") fail cut-short "$n of $size bytes arrived";;
*) fail write "$e";; esac;
h=$(hash "$t");
case "$h" in
"$sum") ;;
none) fail no-hash "there is no sha256sum, shasum, openssl or busybox";;
*) fail hash "$h";; esac;
# Another caller may have brought it meanwhile, and it runs: the name is left to it.
b=$d/@NAME@;
if [ -f "$b" ] && [ "$(hash "$b")" = "$sum" ]; then tidy;
else e=$(mv -f "$t" "$b" 2>&1) || fail write "$e"; t=; fi;
find "$d" -name ".upload.*" -type f -mtime +0 -exec rm -f {} ";" 2>/dev/null;
(cd "$d" && ls -t | grep -E "^tranship-[0-9A-Za-z.+-]+-[0-9a-f]{16}$" | grep -v -x -F @NAME@ | tail -n +3 |
while read -r o; do rm -f "./$o"; done);
say ready; };
IFS=" " read -r verb size sum || exit 0;
case "$verb" in
run-installed) b=$i;;
run-cached) b=$found; touch "$b" 2>/dev/null;;
upload) upload;;
*) exit 0;; esac;
o=$("$b" agent --version-line </dev/null 2>&1);
case "$o" in "tranship "*) ;; *) fail cannot-run "$b: $o";; esac;
say run "$b";
exec "$b" agent --stdio @ARGUMENTS@
