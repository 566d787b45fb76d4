# The acceptance cases of `tranship cp`, one function each. $CP is the command under test, $SOCK the socket of docker's API.
# Everything but what cp_cases.rs names as beyond docker holds for `docker cp` as well, and is run with it too.

fail() { echo "$ID: $*"; exit 1; }
# It is done.
ok() { out=$($CP "$@" 2>&1 </dev/null) || fail "cp $* ended with $?: $out"; }
# It is refused, and the text is said.
err() {
    text=$1; shift
    out=$($CP "$@" 2>&1 </dev/null) && fail "cp $* was done"
    case $out in *"$text"*) ;; *) fail "cp $*: '$text' is not in: $out" ;; esac
}
is() { [ "$1" = "$2" ] || fail "'$1' is not '$2'"; }
none() { for n in "$@"; do [ ! -e "$n" ] && [ ! -L "$n" ] || fail "$n is there"; done; }
c1() { docker exec c1 sh -c "$1"; }
state() { docker inspect -f '{{.State.Status}}' "$1"; }
# A file of c1 as the host sees it, where busybox does not say enough.
inside() { echo "/proc/$(docker inspect -f '{{.State.Pid}}' c1)/root$1"; }

start() { docker run -d --name c1 --network none "$@" "$IMAGE" sleep 86400 >/dev/null || fail "no container"; }
# c1 anew, with options.
anew() { docker rm -f c1 >/dev/null; start "$@"; }
fixture() {
    docker rm -f c1 k1 x1 >/dev/null 2>&1; docker volume rm vr v1 >/dev/null 2>&1
    rm -rf /srv/w /some; mkdir -p /srv/w/d/b /srv/w/o; cd /srv/w || exit 1
    echo F >f; echo a >d/a; echo bb >d/b/bb
    start
    docker create --name k1 --network none "$IMAGE" sleep 86400 >/dev/null
    c1 'mkdir -p /tmp /td/e /some/path; echo T >/t; echo x >/td/x; echo inner >/some/path/test'
}

S01() { ok f c1:/tmp; is "$(c1 'cat /tmp/f')" F; }
S02() { ok f c1:/tmp/new; is "$(c1 'cat /tmp/new')" F; }
S03() { err 'no such directory' f c1:/nodir/; is "$(c1 'ls -d /nodir 2>/dev/null')" ''; }
S04() { err 'Could not find the file /no/such' f c1:/no/such/x; is "$(c1 'ls -d /no 2>/dev/null')" ''; }
S05() { c1 'echo old >/tmp/q'; ok f c1:/tmp/q; is "$(c1 'cat /tmp/q')" F; }
S06() { ok d c1:/tmp; is "$(c1 'cat /tmp/d/a /tmp/d/b/bb')" "$(cat d/a d/b/bb)"; }
S07() { ok d c1:/newd; is "$(c1 'cat /newd/a; ls -d /newd/d 2>/dev/null')" a; }
S08() { ok d/. c1:/tmp; is "$(c1 'cat /tmp/a; ls -d /tmp/d 2>/dev/null')" a; }
S09() {
    before=$(c1 'md5sum /etc/passwd')
    err 'cannot copy directory' d c1:/etc/passwd
    is "$(c1 'md5sum /etc/passwd')" "$before"
}
S10() { anew -w /home; c1 'mkdir -p /tmp'; ok f c1:tmp/rel; is "$(c1 'cat /tmp/rel')" F; }
S11() { c1 'mkdir /s; ln -s t /s/l'; ok f c1:/s/l; is "$(c1 'cat /s/t; readlink /s/l')" "$(printf 'F\nt')"; }
S12() { c1 'mkdir -p /s/dir; ln -s dir /s/ld'; ok f c1:/s/ld; is "$(c1 'cat /s/dir/f; readlink /s/ld')" "$(printf 'F\ndir')"; }
S13() { ok c1:/t o; ok c1:/t o/n; is "$(cat o/t o/n)" "$(printf 'T\nT')"; }
S14() { ok c1:/td o/new; is "$(cat o/new/x)" x; none o/new/td; ok c1:/td/. o; is "$(cat o/x)" x; none o/td; }
S15() { err 'no such directory' c1:/t o/miss/; err 'does not exist' c1:/t o/miss/x; none o/miss; }
S16() {
    echo n >o/n
    err 'cannot copy directory' c1:/td o/n
    err 'cannot copy directory' c1:/td/. o/n
    is "$(cat o/n)" n
}
S17() { err 'Could not find the file /nope' c1:/nope o; none o/nope; }
S18() {
    c1 'ln -s /some/path/test /al'
    ok c1:/al o; is "$(readlink o/al)" /some/path/test
    ok -L c1:/al o/r; is "$(stat -c %F o/r) $(cat o/r)" 'regular file inner'
}
S19() { mkdir -p /some/path; echo outer >/some/path/test; ok c1:/../../some/path/test o; is "$(cat o/test)" inner; }
S20() { err 'must specify at least one container' f d; none d/f; }
S21() { echo AB >a:b; err '' a:b c1:/tmp; ok ./a:b c1:/tmp; is "$(c1 'cat /tmp/a:b')" AB; }
S22() { c1 'echo 7 >/te:s:t'; ok c1:/te:s:t o; is "$(cat o/te:s:t)" 7; }
S23() {
    chmod 640 f; touch -d 2001-02-03T04:05:06.789Z f
    ok f c1:/tmp; is "$(stat -c '%a %.9Y' "$(inside /tmp/f)")" '640 981173106.000000000'
    touch -d 2001-02-03T04:05:06.789Z "$(inside /tmp/f)"
    ok c1:/tmp/f o; is "$(stat -c '%a %.9Y' o/f)" '640 981173106.000000000'
}
S24() { mkdir e; chmod 750 e; ok e c1:/tmp; is "$(c1 'stat -c "%a %F" /tmp/e; ls -A /tmp/e')" '750 directory'; }
S25() {
    mkdir nm; long=$(printf '%0200d' 7)
    for n in 'a b' 'ü' "$(printf 'n\nl')" 'b\s' -x "$long"; do echo "$n" >"nm/$n"; done
    ok nm c1:/tmp; ok c1:/tmp/nm o; diff -r nm o/nm || fail 'they differ'; is "$(ls o/nm | wc -l)" 7
}
S26() {
    is "$($CP c1:/t - | tar t)" t
    is "$($CP c1:/td - | tar t | LC_ALL=C sort | tr '\n' ' ')" 'td/ td/e/ td/x '
}
S27() {
    for kind in tar tar.gz tar.bz2 tar.xz; do
        c1 'rm -rf /tmp/a'
        $CP - c1:/tmp </srv/abc.$kind || fail $kind
        is "$(c1 'cat /tmp/a/b/c')" abc
    done
}
S28() {
    c1 'echo q >/tmp/q'
    for to in /tmp/q /miss; do
        out=$($CP - c1:$to </srv/abc.tar 2>&1) && fail "it went into $to"
        case $out in *'must be a directory'*) ;; *) fail "$out" ;; esac
    done
    is "$(c1 'cat /tmp/q; ls -d /miss 2>/dev/null')" q
}
S29() {
    ok f k1:/tmp; ok k1:/bin/busybox o; is "$(state k1)" created
    [ -s o/busybox ] || fail empty
    docker start k1 >/dev/null; is "$(docker exec k1 cat /tmp/f)" F
}
S30() { docker kill c1 >/dev/null; ok d c1:/tmp; docker start c1 >/dev/null; is "$(c1 'cat /tmp/d/a')" a; }
S31() { docker pause c1 >/dev/null; ok f c1:/tmp; ok c1:/t o; is "$(state c1)" paused; docker unpause c1 >/dev/null; is "$(c1 'cat /tmp/f') $(cat o/t)" 'F T'; }
S32() {
    docker rm k1 >/dev/null; docker create --name k1 -v v1:/v "$IMAGE" sleep 86400 >/dev/null
    ok f k1:/v
    is "$(docker run --rm --name x1 -v v1:/w "$IMAGE" cat /w/f)" F
}
S33() { anew --read-only; err 'marked read-only' f c1:/tmp; ok c1:/etc/passwd o; is "$(cat o/passwd)" "$(c1 'cat /etc/passwd')"; }
S34() {
    docker run --rm --name x1 -v vr:/r "$IMAGE" sh -c 'echo old >/r/existing'
    anew -v vr:/r:ro
    err 'marked read-only' f c1:/r
    err 'marked read-only' f c1:/r/existing
    is "$(c1 'ls /r; cat /r/existing')" "$(printf 'existing\nold')"
}
http() { curl -s --unix-socket "$SOCK" -o /srv/w/body -D /srv/w/head -w '%{http_code}' "$@"; }
archive() { echo "http://d/v1.41/containers/$1/archive"; }
stat_header() { sed -n 's/^X-Docker-Container-Path-Stat: *//Ip' /srv/w/head | tr -d '\r' | base64 -d; }
S35() {
    is "$(http -I "$(archive c1)?path=/etc/passwd")" 200
    is "$(stat_header | jq -r 'keys | join(" ")')" 'linkTarget mode mtime name size'
    is "$(stat_header | jq -r '"\(.name) \(.mode) [\(.linkTarget)]"')" 'passwd 420 []'
    is "$(http -I "$(archive c1)?path=/nope")" 404
}
S36() {
    is "$(http "$(archive c1)")" 400
    is "$(http "$(archive none)?path=/t")" 404; is "$(jq -r .message body)" 'No such container: none'
    is "$(http "$(archive c1)?path=/nope")" 404; is "$(jq -r .message body)" 'Could not find the file /nope in container c1'
}
put() { http -X PUT -H 'Content-Type: application/x-tar' --data-binary @/srv/abc.tar "$(archive c1)?path=$1"; }
S37() {
    is "$(put /tmp)" 200; is "$(c1 'cat /tmp/a/b/c')" abc
    is "$(put /nope)" 404
    code=$(put /etc/passwd); [ "$code" -ge 400 ] || fail "$code"
    case $(jq -r .message body) in *'not a directory'*) ;; *) fail "$(cat body)" ;; esac
}
S38() { ok c1:/t k1:/tmp; is "$(state k1)" created; docker start k1 >/dev/null; is "$(docker exec k1 cat /tmp/t)" T; }
S39() { cd d || exit 1; ok . c1:/tmp; ok . c1:/new; is "$(c1 'cat /tmp/a /new/a; ls -d /tmp/d 2>/dev/null')" "$(printf 'a\na')"; }
S40() {
    mkdir o/dd; ln -s t o/lt; ln -s nx o/lb; ln -s dd o/ld
    for to in lt lb ld; do ok c1:/t o/$to; done
    is "$(cat o/t o/nx o/dd/t | tr -d '\n')" TTT
    is "$(readlink o/lt) $(readlink o/lb) $(readlink o/ld)" 't nx dd'
}
S41() {
    dd if=/dev/urandom of=big bs=65536 count=16 2>/dev/null; $CP big c1:/big >/dev/null 2>&1
    jobs=
    for n in 0 1 2 3 4 5 6 7 8 9; do
        $CP big c1:/tmp/in$n >/dev/null 2>&1 & jobs="$jobs $!"
        $CP c1:/big o/out$n >/dev/null 2>&1 & jobs="$jobs $!"
    done
    for job in $jobs; do wait "$job" || fail "one ended with $?"; done
    sum=$(md5sum <big | cut -c 1-32)
    is "$(cat o/out? | md5sum)" "$(c1 'cat /tmp/in?' | md5sum)"
    is "$(md5sum o/out? | cut -c 1-32 | sort -u)" "$sum"
    is "$(c1 'md5sum /tmp/in?' | cut -c 1-32 | sort -u)" "$sum"
}
S42() {
    is "$(http -H 'Accept-Encoding: gzip' "$(archive c1)?path=/t")" 200
    is "$(gzip -dc body | tar xO)" T
    is "$(http "$(archive c1)?path=/t")" 200; is "$(tar xOf body)" T
    grep -qi '^content-type: application/x-tar' head || fail "$(cat head)"
}
S43() {
    c1 'mkdir "/sp ace+ü"; echo Q >"/sp ace+ü/q&=%41"'
    is "$(http "$(archive c1)?path=%2Fsp%20ace%2B%C3%BC%2Fq%26%3D%2541")" 200
    is "$(tar tf body)" 'q&=%41'
}
S44() { err 'not a directory' c1:/etc/passwd/ o; none o/passwd; }
S45() { c1 'ln -s /nope /dang'; err /nope -L c1:/dang o; none o/dang o/nope; ok c1:/dang o; is "$(readlink o/dang)" /nope; }
S46() {
    echo garbage | $CP - c1:/tmp >/dev/null 2>&1 && fail 'garbage was taken'
    $CP - c1:/tmp </dev/null >/dev/null 2>&1 || fail 'nothing was refused'
    head -c 60 /srv/abc.tar.gz | $CP - c1:/tmp >/dev/null 2>&1 && fail 'a part was taken'
    :
}
S47() {
    echo host >bf; anew -v /srv/w/bf:/bf
    ok c1:/bf o; is "$(cat o/bf)" host
    err busy f c1:/bf; is "$(cat bf)" host
}
