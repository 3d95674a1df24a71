#!/usr/bin/env bash
# Builds on a machine with docker (or DOCKER=podman), as kaniko's script of this name does:
#   run_in_docker.sh DOCKERFILE CONTEXT DESTINATION [CACHE]
# DOCKERFILE counts from the context. CACHE is true or false: the layer cache in DESTINATION's repository, under /cache.
# CACHE_DIR names a volume or a folder that `warmer` has filled; it is mounted read-only. Your own docker login is used.
set -euo pipefail
if [ $# -lt 3 ] || [ $# -gt 4 ]; then
  echo "usage: $0 DOCKERFILE CONTEXT DESTINATION [CACHE]" >&2
  exit 1
fi
dockerfile=$1 context=$(cd "$2" && pwd) destination=$3 cache=${4:-false}
image=${KILN_IMAGE:-kiln/executor:latest}
options=()
[ ! -e "$HOME/.docker/config.json" ] || options+=(-v "$HOME/.docker/config.json:/kaniko/.docker/config.json:ro")
[ -z "${CACHE_DIR:-}" ] || options+=(-v "$CACHE_DIR:/cache:ro")
# Docker's seccomp profile refuses namespaces, so this is rung root; DOCKER_OPTIONS="--security-opt seccomp=unconfined" and a
# volume at /kaniko/scratch give rung overlay.
# shellcheck disable=SC2086 # several options in one variable
exec "${DOCKER:-docker}" run --rm "${options[@]}" ${DOCKER_OPTIONS:-} -v "$context:/workspace:ro" "$image" \
  --dockerfile "$dockerfile" --destination "$destination" --context dir:///workspace/ "--cache=$cache"
