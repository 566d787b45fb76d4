#!/bin/sh
# Builds the test images inside a node; no registry is involved.
# In: /root/build/base.tar, /root/build/debs/GROUP/*.deb, /root/build/programs. Out: /root/build/out/*.tar
set -eu
cd /root/build
mkdir -p out
export DOCKER_BUILDKIT=0

# --- busybox:1, one small layer serving one page ---------------------------------------------------------------
mkdir -p busybox/rootfs/bin busybox/rootfs/www busybox/rootfs/tmp busybox/rootfs/etc
cp /usr/bin/busybox busybox/rootfs/bin/busybox
for applet in $(busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "busybox/rootfs/bin/$applet"
done
echo 'busybox here' > busybox/rootfs/www/index.html
echo 'root:x:0:0:root:/:/bin/sh' > busybox/rootfs/etc/passwd
echo 'root:x:0:' > busybox/rootfs/etc/group
chmod 1777 busybox/rootfs/tmp
tar -C busybox/rootfs --numeric-owner --owner=0 --group=0 -cf busybox/rootfs.tar .
cat > busybox/Dockerfile <<'FILE'
FROM scratch
ADD rootfs.tar /
ENV PATH=/bin
EXPOSE 8080
CMD ["httpd", "-f", "-p", "8080", "-h", "/www"]
FILE
rm -rf busybox/rootfs
docker build --quiet --network none -t tranship-test/busybox:1 busybox
docker save -o out/busybox-1.tar tranship-test/busybox:1

# --- web:1, the kind of image people run: a distribution, packages, an application, configuration ----------------
docker import base.tar stage:base
parent=stage:base
for group in runtime server state languages; do
    tar -C "debs/$group" -cf - . | docker run --interactive --name "stage-$group" --network none "$parent" sh -c '
        set -e
        export DEBIAN_FRONTEND=noninteractive
        printf "#!/bin/sh\nexit 101\n" > /usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
        # Alternatives of manual pages want their directory.
        mkdir -p /tmp/debs /usr/share/man/man1
        tar -C /tmp/debs -xf -
        apt-get install -y -qq --no-install-recommends -o APT::Sandbox::User=root \
            -o Dpkg::Options::=--force-unsafe-io /tmp/debs/*.deb
        # The compiler for queries is most of PostgreSQL and of no use here, nor is a database made at installation.
        rm -rf /tmp/debs /usr/sbin/policy-rc.d /usr/share/doc/* /usr/share/man/* /var/log/* \
            /var/lib/apt/lists/* /var/cache/apt/* /usr/lib/*/libLLVM* /usr/lib/postgresql/*/lib/llvmjit* \
            /usr/lib/postgresql/*/lib/bitcode /var/lib/postgresql/* /etc/postgresql/*' > "$group.log" 2>&1 ||
        { cat "$group.log" >&2; exit 1; }
    docker commit --change 'CMD ["sh"]' "stage-$group" "stage:$group"
    docker rm "stage-$group"
    parent=stage:$group
done

mkdir -p web/site web/assets web/lib web/data web/more
echo '<!doctype html><title>tranship</title><p>web here</p>' > web/site/index.html
head -c 25165824 /dev/urandom > web/assets/pictures.bin
i=0
while [ $i -lt 200 ]; do
    printf 'def handler_%s(request):\n    return {"handler": %s, "path": request}\n' $i $i > "web/lib/handler_$i.py"
    i=$((i + 1))
done
seq 1 3000000 > web/data/records.txt
head -c 8388608 /dev/urandom > web/more/release.bin
cat > web/nginx.conf <<'FILE'
worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr;
events { worker_connections 512; }
http {
    access_log off;
    default_type text/html;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    server {
        listen 8080;
        root /srv/www;
        location = /health { return 200 "well\n"; }
        location = /host { return 200 "$hostname\n"; }
    }
}
FILE
cat > web/entrypoint <<'FILE'
#!/bin/sh
set -e
echo "starting on port $APP_PORT as $(id -un)"
exec "$@"
FILE
cat > web/Dockerfile <<'FILE'
FROM stage:server
ENV APP_ENV=production APP_PORT=8080 LANG=C.UTF-8
LABEL org.opencontainers.image.title=web org.opencontainers.image.version=1 tranship.test="a label with spaces"
COPY nginx.conf /etc/nginx/nginx.conf
COPY site/ /srv/www/
RUN useradd --system --home-dir /srv/app --shell /usr/sbin/nologin app && mkdir -p /srv/app && chown app: /srv/app
COPY --chown=app:app lib/ /srv/app/lib/
RUN python3 -m compileall -q /srv/app/lib
COPY assets/ /srv/www/assets/
COPY data/ /srv/app/data/
COPY entrypoint /usr/local/bin/entrypoint
RUN chmod 755 /usr/local/bin/entrypoint
RUN ln -s /srv/app/data /data && echo "built for $APP_ENV" > /srv/app/BUILD
WORKDIR /srv/app
USER app
EXPOSE 8080
STOPSIGNAL SIGQUIT
HEALTHCHECK --interval=1s --timeout=3s --retries=3 CMD ["busybox", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/health"]
ENTRYPOINT ["/usr/local/bin/entrypoint"]
CMD ["nginx", "-g", "daemon off;"]
FILE
printf 'more\n' > web/.dockerignore
docker build --quiet --network none -t tranship-test/web:1 web

# --- web:2, the next release: one more layer -------------------------------------------------------------------
printf 'FROM tranship-test/web:1\nCOPY release.bin /srv/www/release.bin\n' > web/more/Dockerfile
docker build --quiet --network none -t tranship-test/web:2 web/more

for version in 1 2; do
    docker save -o "out/web-$version.tar" "tranship-test/web:$version"
done

# --- state:1, what keeps state ---------------------------------------------------------------------------------
mkdir -p state
cp -r programs state/programs
cp -r debs/later state/later
cat > state/Dockerfile <<'FILE'
FROM stage:state
ENV LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/17/bin
COPY later/ /opt/later/
COPY programs/run-postgres /usr/local/bin/
RUN chmod 755 /usr/local/bin/*
CMD ["sleep", "infinity"]
FILE
docker build --quiet --network none -t tranship-test/state:1 state
docker save -o out/state-1.tar tranship-test/state:1

# --- python:1, node:1, java:1: one small layer each for what busybox cannot do: programs with the libraries that they name ----
# A system of its own in ROOT: busybox, and the libraries of what is there already.
cat > complete.sh <<'FILE'
for directory in usr/bin usr/lib usr/lib64 usr/local/bin etc tmp root var; do
    mkdir -p "$directory"
done
for link in bin lib lib64; do
    ln -s "usr/$link" "$link"
done
find . -type f '(' -perm -u+x -o -name '*.so*' ')' | while read -r file; do
    ldd "$file" 2> /dev/null | grep -o "/[^ ]*" || true
done | sort -u | grep -v '^/out/' | while read -r needed; do
    case $needed in /usr/*) place=.$needed ;; *) place=./usr$needed ;; esac
    mkdir -p "${place%/*}"
    [ -e "$place" ] || cp -L "$needed" "$place"
done
cp /bin/busybox usr/bin/busybox
for applet in $(busybox --list); do
    [ -e "usr/bin/$applet" ] || ln -s busybox "usr/bin/$applet"
done
echo "root:x:0:0:root:/root:/bin/sh" > etc/passwd
echo "root:x:0:" > etc/group
chmod 1777 tmp
FILE

# layer NAME STAGE: the image NAME:1 of what the script on standard input puts together from STAGE, with more lines for its Dockerfile.
layer() {
    mkdir -p "$1/rootfs"
    { echo 'set -e; cd /out'; cat; cat complete.sh; } > "$1/make.sh"
    docker run --rm --network none --volume "/root/build/$1/rootfs:/out" --volume "/root/build/$1/make.sh:/make.sh:ro" \
        --volume /root/build/programs:/programs:ro "$2" sh /make.sh
    tar -C "$1/rootfs" --numeric-owner --owner=0 --group=0 -cf "$1/rootfs.tar" .
    rm -rf "$1/rootfs"
    printf 'FROM scratch\nADD rootfs.tar /\nENV PATH=/usr/local/bin:/usr/bin:/bin %s\nCMD ["sleep", "infinity"]\n' "$3" > "$1/Dockerfile"
    docker build --quiet --network none -t "tranship-test/$1:1" "$1"
    docker save -o "out/$1-1.tar" "tranship-test/$1:1"
}

layer python stage:state PYTHONHOME=/usr <<'FILE'
mkdir -p usr/bin usr/local/bin
python=$(readlink -f /usr/bin/python3)
library=/usr/lib/${python##*/}
cp "$python" usr/bin/python3
mkdir -p ".$library"
tar -C "$library" --exclude=./test --exclude=./idlelib --exclude=./ensurepip --exclude=./tkinter \
    --exclude=./lib2to3 --exclude=./pydoc_data --exclude="./config-*" -cf - . | tar -C ".$library" -xf -
cp /usr/sbin/setcap /usr/sbin/getcap /usr/bin/setfacl /usr/bin/getfacl /usr/bin/setfattr /usr/bin/getfattr usr/bin
cp /programs/append-service usr/local/bin/
chmod 755 usr/local/bin/*
FILE

layer node stage:languages NODE_ENV=production <<'FILE'
mkdir -p usr/bin opt
cp -L /usr/bin/node usr/bin/node
tar -C / --exclude=corepack -cf - usr/share/nodejs | tar -xf -
cp /programs/counting.js opt/
FILE

layer java stage:languages LANG=C.UTF-8 <<'FILE'
mkdir -p usr/bin opt
java=$(readlink -f /usr/bin/java)
home=${java%/bin/java}
tar -C / -cf - "${home#/}" etc/java-21-openjdk | tar -xf -
ln -s "$home/bin/java" usr/bin/java
# The command of that package does not name the archive that the compiler is in.
java -cp /usr/share/java/eclipse-jdt-core-compiler-batch.jar org.eclipse.jdt.internal.compiler.batch.Main \
    -17 -d opt /programs/Counting.java
FILE
