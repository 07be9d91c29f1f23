#!/usr/bin/env bash
# Makes, out of Debian packages alone, the images that the container tests and
# compose.yaml otherwise pull from a registry:
#
#   zkbeat-test/debian:bookworm   zkbeat-test/debian:trixie
#   zkbeat-test/zookeeper:3.8     zkbeat-test/zookeeper:3.9   (stand in for zookeeper:3.x)
#   zkbeat-test/python:3.11                                   (stands in for python:3.x-slim)
#   zkbeat-test/redis:7                                       (stands in for redis:7)
#
# They behave like the official images as far as this repository uses those: same
# environment variables, ports, volumes and commands. On a machine that reaches a
# registry nobody needs them.
#
#   compose/base-images.sh            make what is missing
#   compose/base-images.sh --force    make everything anew
#
# Needs: docker, debootstrap, and root (or sudo) for debootstrap. Trees made by
# debootstrap are kept in ${XDG_CACHE_HOME:-~/.cache}/zkbeat, so a machine whose
# images were pruned does not download them again.
set -euo pipefail
shopt -s inherit_errexit

readonly PREFIX=zkbeat-test
readonly IMAGES=("$PREFIX"/{debian:bookworm,debian:trixie,python:3.11,redis:7,zookeeper:3.8,zookeeper:3.9})
# Part of each image's label: an image made by another version of this script is made anew.
RECIPE=$(sha256sum "${BASH_SOURCE[0]}" | cut -c1-12)
readonly RECIPE
readonly LABEL=org.zkbeat.recipe
readonly CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/zkbeat

FORCE=no
case ${1:-} in
    '') ;;
    --force) FORCE=yes ;;
    *)
        sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
esac

say() { printf 'base-images: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# The legacy builder is enough, and is what Debian's docker.io has.
export DOCKER_BUILDKIT=0

wanted() { # wanted IMAGE: is it missing, or made by another recipe?
    [[ $FORCE == no ]] || return 0
    local have
    have=$(docker image inspect --format "{{index .Config.Labels \"$LABEL\"}}" "$1" 2>/dev/null) || return 0
    [[ $have != "$RECIPE" ]]
}

as_root() {
    if [[ $EUID -eq 0 ]]; then "$@"; else sudo "$@"; fi
}

# --- the host's apt ---------------------------------------------------------
# A host that reaches Debian through a mirror, a proxy or a certificate authority
# of its own has that in apt's configuration, and containers on it need the same.

host_mirror() { # host_mirror LABEL DEFAULT: the first archive of that label that the host uses
    local uri=
    if command -v apt-get >/dev/null; then
        # shellcheck disable=SC2016 # apt's own placeholders
        uri=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
            awk -F'|' -v label="$1" '$1 == "Debian" && $2 == label && $3 ~ /^https?:/ { print $3; exit }') || uri=
    fi
    printf '%s\n' "${uri:-$2}"
}

host_apt_conf() { # how the host fetches: proxies, certificates, date checks
    command -v apt-config >/dev/null || return 0
    apt-config dump |
        grep -E '^Acquire::(https?::(Proxy|CaInfo|Verify)|Check-(Valid-Until|Date)|Retries)' || true
}

write_apt() { # write_apt ROOT SUITE: the same configuration inside a tree
    local root=$1 suite=$2
    {
        printf 'deb %s %s main\n' "$MIRROR" "$suite"
        printf 'deb %s %s-updates main\n' "$MIRROR" "$suite"
        printf 'deb %s %s-security main\n' "$SECURITY" "$suite"
    } | as_root tee "$root/etc/apt/sources.list" >/dev/null
    host_apt_conf | as_root tee "$root/etc/apt/apt.conf.d/90host" >/dev/null
    as_root tee "$root/etc/apt/apt.conf.d/91small" >/dev/null <<'APT'
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };
APT
    as_root tee "$root/etc/dpkg/dpkg.cfg.d/small" >/dev/null <<'DPKG'
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
force-unsafe-io
DPKG
    # A package's own service must not start while an image is built.
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$root/usr/sbin/policy-rc.d" >/dev/null
    as_root chmod 755 "$root/usr/sbin/policy-rc.d"
    if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
        as_root mkdir -p "$root/usr/local/share/ca-certificates"
        as_root cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/"
        as_root chroot "$root" sh -c 'command -v update-ca-certificates && update-ca-certificates' \
            >/dev/null 2>&1 || true
    fi
}

# --- Debian itself ----------------------------------------------------------

debian() { # debian SUITE
    local suite=$1 image=$PREFIX/debian:$1 tarball arch root
    wanted "$image" || return 0
    arch=$(dpkg --print-architecture)
    tarball=$CACHE/debian-$suite-$arch-$RECIPE.tar
    if [[ ! -s $tarball || $FORCE == yes ]]; then
        command -v debootstrap >/dev/null || die "debootstrap is missing: apt-get install debootstrap"
        say "debootstrap $suite from $MIRROR"
        root=$SCRATCH/$suite
        as_root debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" "$MIRROR" \
            >"$SCRATCH/debootstrap.log" 2>&1 || {
            tail -n 20 "$SCRATCH/debootstrap.log" >&2
            die "debootstrap $suite failed"
        }
        write_apt "$root" "$suite"
        # (The empty man1 stays: the Java packages' alternatives want it.)
        as_root rm -rf "$root"/usr/share/{doc,locale} "$root"/usr/share/man/?* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
        as_root mkdir -p "$root/usr/share/man/man1"
        mkdir -p "$CACHE"
        rm -f "$CACHE/debian-$suite-$arch-"*.tar
        as_root tar -C "$root" --numeric-owner --one-file-system --exclude='./dev/*' --exclude='./proc/*' \
            --exclude='./sys/*' -cf - . >"$tarball.part"
        mv "$tarball.part" "$tarball"
        as_root rm -rf "$root"
    fi
    say "import $image"
    docker import --change 'CMD ["bash"]' --change "LABEL $LABEL=$RECIPE" "$tarball" "$image" >/dev/null
}

# --- what stands on it ------------------------------------------------------

build() { # build IMAGE DIRECTORY
    wanted "$1" || return 0
    say "build $1"
    docker build --quiet --force-rm --label "$LABEL=$RECIPE" --tag "$1" "$2" >"$SCRATCH/build.log" 2>&1 || {
        tail -n 40 "$SCRATCH/build.log" >&2
        die "$1 could not be built"
    }
}

zookeeper() { # zookeeper VERSION SUITE
    local image=$PREFIX/zookeeper:$1 context=$SCRATCH/zookeeper
    wanted "$image" || return 0
    rm -rf "$context" && mkdir "$context"
    # After the official image's docker-entrypoint.sh: the same variables with the same defaults.
    cat >"$context/entrypoint.sh" <<'ENTRYPOINT'
#!/bin/bash
set -e
if [[ $1 == zkServer.sh && $(id -u) == 0 ]]; then
    chown -R zookeeper "$ZOO_DATA_DIR" "$ZOO_DATA_LOG_DIR" "$ZOO_LOG_DIR" "$ZOO_CONF_DIR"
    exec setpriv --reuid=zookeeper --regid=zookeeper --clear-groups "$0" "$@"
fi
if [[ ! -f $ZOO_CONF_DIR/zoo.cfg ]]; then
    {
        echo "dataDir=$ZOO_DATA_DIR"
        echo "dataLogDir=$ZOO_DATA_LOG_DIR"
        echo "tickTime=${ZOO_TICK_TIME:-2000}"
        echo "initLimit=${ZOO_INIT_LIMIT:-5}"
        echo "syncLimit=${ZOO_SYNC_LIMIT:-2}"
        echo "autopurge.snapRetainCount=${ZOO_AUTOPURGE_SNAPRETAINCOUNT:-3}"
        echo "autopurge.purgeInterval=${ZOO_AUTOPURGE_PURGEINTERVAL:-0}"
        echo "maxClientCnxns=${ZOO_MAX_CLIENT_CNXNS:-60}"
        echo "standaloneEnabled=${ZOO_STANDALONE_ENABLED:-true}"
        # Unlike the official image's, off by default: Debian's package lacks the servlet classes.
        echo "admin.enableServer=${ZOO_ADMINSERVER_ENABLED:-false}"
        if [[ -n $ZOO_4LW_COMMANDS_WHITELIST ]]; then
            echo "4lw.commands.whitelist=$ZOO_4LW_COMMANDS_WHITELIST"
        fi
        for entry in $ZOO_CFG_EXTRA; do echo "$entry"; done
        for server in ${ZOO_SERVERS:-server.1=localhost:2888:3888;2181}; do echo "$server"; done
    } >"$ZOO_CONF_DIR/zoo.cfg"
fi
if [[ ! -f $ZOO_DATA_DIR/myid ]]; then
    echo "${ZOO_MY_ID:-1}" >"$ZOO_DATA_DIR/myid"
fi
exec "$@"
ENTRYPOINT
    cat >"$context/zkServer.sh" <<'SERVER'
#!/bin/bash
# Stands in for the distribution's: `start-foreground` as PID 1, its log on stderr.
[[ ${1:-} == start-foreground ]] || { echo "only 'start-foreground' is supported here" >&2; exit 2; }
# shellcheck disable=SC2086 # flags are words
exec java -cp "$ZOO_CONF_DIR:/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar" \
    -Dorg.slf4j.simpleLogger.showDateTime=true \
    -Dorg.slf4j.simpleLogger.dateTimeFormat='yyyy-MM-dd HH:mm:ss,SSS' \
    -Xmx"${ZK_SERVER_HEAP:-1000}m" $JVMFLAGS $SERVER_JVMFLAGS \
    org.apache.zookeeper.server.quorum.QuorumPeerMain "$ZOO_CONF_DIR/zoo.cfg"
SERVER
    chmod 755 "$context"/*.sh
    cat >"$context/Dockerfile" <<DOCKERFILE
FROM $PREFIX/debian:$2
ENV ZOO_CONF_DIR=/conf ZOO_DATA_DIR=/data ZOO_DATA_LOG_DIR=/datalog ZOO_LOG_DIR=/logs
RUN apt-get update -q \\
 && apt-get install -yq libzookeeper-java default-jre-headless \\
 && rm -rf /var/lib/apt/lists/* \\
 && (getent passwd zookeeper || useradd --system --user-group zookeeper) \\
 && mkdir -p /conf /data /datalog /logs \\
 && chown zookeeper: /conf /data /datalog /logs
COPY zkServer.sh entrypoint.sh /usr/local/bin/
VOLUME ["/data", "/datalog", "/logs"]
EXPOSE 2181 2888 3888 8080
ENTRYPOINT ["entrypoint.sh"]
CMD ["zkServer.sh", "start-foreground"]
DOCKERFILE
    build "$image" "$context"
}

python() { # python VERSION SUITE
    local image=$PREFIX/python:$1 context=$SCRATCH/python
    rm -rf "$context" && mkdir "$context"
    cat >"$context/Dockerfile" <<DOCKERFILE
FROM $PREFIX/debian:$2
ENV LANG=C.UTF-8
RUN apt-get update -q \\
 && apt-get install -yq python3 python3-pip python3-venv \\
 && rm -rf /var/lib/apt/lists/* /usr/lib/python3*/EXTERNALLY-MANAGED \\
 && ln -s /usr/bin/python3 /usr/local/bin/python
CMD ["python3"]
DOCKERFILE
    build "$image" "$context"
}

redis() { # redis VERSION SUITE
    local image=$PREFIX/redis:$1 context=$SCRATCH/redis
    rm -rf "$context" && mkdir "$context"
    # The official server is compiled without protected mode.
    cat >"$context/entrypoint.sh" <<'ENTRYPOINT'
#!/bin/bash
set -e
[[ ${1#-} == "$1" ]] || set -- redis-server "$@"
if [[ $1 == redis-server ]]; then
    set -- "$@" --bind '* -::*' --protected-mode no
    if [[ $(id -u) == 0 ]]; then
        chown -R redis /data
        exec setpriv --reuid=redis --regid=redis --clear-groups "$@"
    fi
fi
exec "$@"
ENTRYPOINT
    chmod 755 "$context/entrypoint.sh"
    cat >"$context/Dockerfile" <<DOCKERFILE
FROM $PREFIX/debian:$2
RUN apt-get update -q \\
 && apt-get install -yq redis-server \\
 && rm -rf /var/lib/apt/lists/* \\
 && mkdir -p /data && chown redis: /data
COPY entrypoint.sh /usr/local/bin/
VOLUME ["/data"]
WORKDIR /data
EXPOSE 6379
ENTRYPOINT ["entrypoint.sh"]
CMD ["redis-server"]
DOCKERFILE
    build "$image" "$context"
}

command -v docker >/dev/null || die "docker is missing: apt-get install docker.io"
docker version --format '{{.Server.Version}}' >/dev/null 2>&1 || die "no Docker engine answers: is dockerd running?"

missing=no
for image in "${IMAGES[@]}"; do
    if wanted "$image"; then missing=yes; fi
done
[[ $missing == yes ]] || exit 0

SCRATCH=$(mktemp -d)
readonly SCRATCH
trap 'as_root rm -rf "$SCRATCH"' EXIT

MIRROR=$(host_mirror Debian http://deb.debian.org/debian/)
SECURITY=$(host_mirror Debian-Security http://deb.debian.org/debian-security/)
readonly MIRROR SECURITY

debian bookworm
python 3.11 bookworm
redis 7 bookworm
zookeeper 3.8 bookworm
debian trixie
zookeeper 3.9 trixie

# What an earlier version of this script made and no name points at any more.
docker image prune --force --filter "label=$LABEL" >/dev/null
