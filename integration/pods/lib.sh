# What the checks of this directory share: a registry, base images, and containers started as Kubernetes starts a pod's.
# To be sourced. `KILN` names the static binary; base images are kept in `IMAGES` and made where they are missing.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
KILN=$(readlink -f "${KILN:?say where the static binary is}")
IMAGES=${IMAGES:-$here/out/pods/images}
export CONTAINERS_CONF=$here/integration/pod/containers.conf
work=$(mktemp -d "${TMPDIR:-/tmp}/kiln-pods.XXXXXX")
passed=0 failed=0

# Each on a port that the kernel chose. Everything started here ends with the script.
registry_pid=
finish() {
  [ -z "$registry_pid" ] || kill "$registry_pid" 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

need() { # the tools that a check needs, as command:package
  local missing=() pair
  for pair in "$@"; do command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair##*:}"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  echo "installing ${missing[*]}"
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
}

need podman:podman runc:runc catatonit:catatonit docker-registry:docker-registry skopeo:skopeo jq:jq busybox:busybox-static \
  mmdebstrap:mmdebstrap curl:curl python3:python3

start_registry() { # sets `registry`
  local port
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  registry=127.0.0.1:$port
  cat >"$work/registry.yml" <<Y
version: 0.1
storage: {filesystem: {rootdirectory: $work/registry}, delete: {enabled: true}}
http: {addr: "$registry"}
Y
  docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
  registry_pid=$!
  for _ in $(seq 100); do curl -sf "http://$registry/v2/" >/dev/null && return; sleep 0.1; done
  echo "the registry did not start:"; tail "$work/registry.log"; exit 1
}

# An OCI layout in $IMAGES/NAME, of a Debian root file system: made once, kept.
debian_image() { # name, packages, mmdebstrap's variant
  [ -e "$IMAGES/$1/index.json" ] && return
  mkdir -p "$IMAGES"
  echo "making the base image $1"
  mmdebstrap --quiet --variant="$3" --include="$2" --aptopt='APT::Sandbox::User "root"' bookworm "$work/$1.tar"
  podman import -q "$work/$1.tar" "localhost/kiln-pods-$1" >/dev/null
  rm "$work/$1.tar"
  skopeo copy -q "containers-storage:localhost/kiln-pods-$1" "oci:$IMAGES/$1.new:latest"
  podman rmi -f "localhost/kiln-pods-$1" >/dev/null
  mv "$IMAGES/$1.new" "$IMAGES/$1"
}
toolchain_image() { debian_image toolchain gcc,libc6-dev,make,git,python3,perl,g++,gdb,cmake,clang apt; }
slim_image() { debian_image slim ca-certificates minbase; }
ci_image() { debian_image ci ca-certificates,git minbase; }

serve() { # name of a kept image …: into the registry
  local name
  for name in "$@"; do
    skopeo copy -q --dest-tls-verify=false "oci:$IMAGES/$name" "docker://$registry/$name:1"
  done
}

# Busybox and a few links to it as a root file system in a directory.
busybox_root() {
  local applet
  mkdir -p "$1"/{bin,etc,root,tmp,var}
  cp "$(command -v busybox)" "$1/bin/busybox"
  for applet in sh cat cp echo grep id kill ls mkdir ln mv ps rm rmdir sleep stat touch test true wc find seq dd sync mount od; do
    ln -sf busybox "$1/bin/$applet"
  done
  echo 'root:x:0:0:root:/root:/bin/sh' >"$1/etc/passwd"
  echo 'root:x:0:' >"$1/etc/group"
}
serve_busybox() { # a base image of it, as $registry/busybox:1
  busybox_root "$work/busybox"
  tar -C "$work/busybox" --sort=name --mtime=@1 --owner=0 --group=0 -cf "$work/busybox.tar" .
  mkdir -p "$work/busybox-context"
  mv "$work/busybox.tar" "$work/busybox-context/"
  printf 'FROM scratch\nADD busybox.tar /\nENV PATH=/bin\n' >"$work/busybox-context/Dockerfile"
  "$KILN" executor -c "$work/busybox-context" -f "$work/busybox-context/Dockerfile" --scratch-dir "$work/outside" \
    -d "$registry/busybox:1" --reproducible 2>"$work/log" || { cat "$work/log"; exit 1; }
}

# The context of the main job: a C program of $FILES files, compiled in the toolchain image, with a stage beside it.
toolchain_context() {
mkdir -p "$work/context/src"
python3 - "$work/context/src" "${FILES:-200}" <<'P'
import sys
files = int(sys.argv[2])
for n in range(files):
    body = "\n".join(f"int f{n}_{k}(int x) {{ return x * {k} + {n}; }}" for k in range(40))
    open(f"{sys.argv[1]}/f{n}.c", "w").write(body + "\n")
calls = " + ".join(f"f{n}_1(1)" for n in range(files))
decls = "\n".join(f"int f{n}_1(int);" for n in range(files))
open(f"{sys.argv[1]}/main.c", "w").write(f'#include <stdio.h>\n{decls}\nint main(void) {{ printf("sum %d\\n", {calls}); return 0; }}\n')
P
cat >"$work/context/Dockerfile" <<D
FROM $registry/toolchain:1 AS build
WORKDIR /src
COPY src/ .
RUN for f in *.c; do gcc -O1 -c \$f || exit 1; done
RUN gcc -static -o /app *.o && rm *.o
FROM $registry/slim:1 AS beside
RUN echo beside > /note && mkdir -p /data/a && chown 12:34 /data/a
FROM $registry/slim:1
COPY --from=build /app /usr/local/bin/app
COPY --from=beside /note /data /opt/
ENTRYPOINT ["/usr/local/bin/app"]
D
toolchain_sum=$(python3 -c 'import sys; print(sum(n + 1 for n in range(int(sys.argv[1]))))' "${FILES:-200}")
}

# Kiln's own image: nothing but the binary and the mark.
executor_image=kiln-pods-executor
make_executor_image() {
  mkdir -p "$work/image"/{kaniko,workspace,etc,tmp}
  cp "$KILN" "$work/image/kaniko/executor"
  ln -f "$work/image/kaniko/executor" "$work/image/kaniko/warmer"
  touch "$work/image/etc/kiln-image"
  tar -C "$work/image" -c . | podman import -q - $executor_image >/dev/null
}

# The ways in which pods are started, and the rung that each must take.
rungs="overlay directory chroot runtime-default no-mount"
has_gvisor() { command -v runsc >/dev/null 2>&1; }
rung_of() {
  case $1 in
    overlay | directory | chroot) echo "$1" ;;
    *) echo root ;;
  esac
}
pod_flags() { # way: podman's flags
  case $1 in
    overlay) rm -rf "$work/scratch"; mkdir -p "$work/scratch"; echo "-v $work/scratch:/kaniko/scratch" ;;
    directory | chroot) ;;
    runtime-default) echo "--security-opt seccomp=$here/integration/pod/runtime-default-like.json" ;;
    no-mount) echo "--security-opt seccomp=$here/integration/pod/no-mount-eacces.json" ;;
    gvisor) echo "--ulimit host" ;;
  esac
}
kiln_flags() { # way: the executor's flags
  case $1 in
    chroot) echo --isolation=chroot ;;
    gvisor) echo --force ;;
  esac
}
podman_for() { # way: podman, with the runtime that the way needs
  if [ "$1" = gvisor ]; then echo "podman --runtime runsc --runtime-flag network=host"; else echo podman; fi
}

# Runs the executor in a pod: way, podman's further flags (one word, split), then the executor's flags. The log goes to
# $work/log, the exit code to `code`.
executor() {
  local way=$1 more=$2
  shift 2
  code=0
  # shellcheck disable=SC2046,SC2086
  $(podman_for "$way") run --rm $(pod_flags "$way") $more $executor_image /kaniko/executor $(kiln_flags "$way") "$@" \
    >"$work/log" 2>&1 || code=$?
}

ok() { echo "ok      $*"; passed=$((passed + 1)); }
fail() {
  echo "FAILED  $*"
  failed=$((failed + 1))
  [ ! -s "$work/log" ] || sed 's/^/        | /' "$work/log" | tail -40
}
# check NAME COMMAND …: ok if the command succeeds
check() {
  local name=$1
  shift
  if "$@" >"$work/check" 2>&1; then ok "$name"; else fail "$name"; sed 's/^/        > /' "$work/check" | tail; fi
}
summary() {
  echo "$passed passed, $failed failed"
  [ "$failed" = 0 ]
}
digest_of() { # reference: its manifest's digest in the registry
  skopeo inspect --raw --tls-verify=false "docker://$1" | sha256sum | cut -d' ' -f1
}
is_absent() { # reference
  ! skopeo inspect --raw --tls-verify=false "docker://$1" >/dev/null 2>&1
}
