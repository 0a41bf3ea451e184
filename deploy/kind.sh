#!/usr/bin/env bash
# A kind cluster with Sidestep in it: `make kind`. May be run again at any time; what is there is kept.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'TEXT'
usage: deploy/kind.sh [option ...]

Makes a kind cluster, loads Sidestep's image into its nodes, applies the manifest and waits for the daemons.
Needs kind, kubectl, and docker or podman (docker if both are there; KIND_EXPERIMENTAL_PROVIDER=podman says otherwise).

  --name NAME         the cluster's name; its kubectl context is kind-NAME (default: sidestep)
  --config FILE       kind's configuration (default: deploy/kind.yaml)
  --node-image IMAGE  the image of the nodes (default: kind's own)
  --archive FILE      load images from this archive instead of building Sidestep's; may be given more than once
  --manifest FILE     what to apply (default: deploy/daemonset.yaml)
  --help              this text
TEXT
}

say() { echo "sidestep: $*"; }
fail() { say "$*" >&2; exit 1; }

# bash 3.2, which macOS has, takes an empty array for an unset variable: ${array[@]+"${array[@]}"} is safe.
name=sidestep config=deploy/kind.yaml manifest=deploy/daemonset.yaml node_image='' archives=()
while [ $# -gt 0 ]; do
    case "$1" in
        --help) usage; exit 0 ;;
        --name | --config | --node-image | --archive | --manifest) [ $# -ge 2 ] || fail "$1 needs a value" ;;
        *) usage >&2; fail "unknown option: $1" ;;
    esac
    case "$1" in
        --name) name=$2 ;;
        --config) config=$2 ;;
        --node-image) node_image=$2 ;;
        --archive) archives+=("$2") ;;
        --manifest) manifest=$2 ;;
    esac
    shift 2
done

for tool in kind kubectl; do
    command -v "$tool" >/dev/null || fail "this needs $tool (it was not found)"
done
# What runs the nodes: kind takes docker unless it is told otherwise.
runtime=${KIND_EXPERIMENTAL_PROVIDER:-}
if [ -z "$runtime" ]; then
    for runtime in docker podman none; do
        ! command -v "$runtime" >/dev/null || break
    done
fi
case "$runtime" in
    docker) ;;
    podman) export KIND_EXPERIMENTAL_PROVIDER=podman ;;
    none) fail "this needs docker or podman (neither was found)" ;;
    *) fail "KIND_EXPERIMENTAL_PROVIDER=$runtime: only docker and podman are supported" ;;
esac
command -v "$runtime" >/dev/null || fail "this needs $runtime (it was not found)"
"$runtime" info >/dev/null 2>&1 || fail "$runtime does not answer: '$runtime info' says why"
for file in "$config" "$manifest" ${archives[@]+"${archives[@]}"}; do
    [ -r "$file" ] || fail "$file cannot be read"
done

if [ ${#archives[@]} -eq 0 ]; then
    image=$(sed -n 's/^ *image: *//p' deploy/daemonset.yaml)
    say "building $image with $runtime"
    ignore=()
    [ "$runtime" = docker ] || ignore=(--ignorefile=deploy/Dockerfile.dockerignore)
    "$runtime" build ${ignore[@]+"${ignore[@]}"} -f deploy/Dockerfile -t "$image" .
    # By way of an archive, which works with both: `kind load docker-image` asks docker, whoever runs the nodes.
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    say "saving it for the nodes"
    "$runtime" save -o "$folder/sidestep.tar" "$image"
    archives=("$folder/sidestep.tar")
fi

if kind get clusters 2>/dev/null | grep -qx "$name"; then
    say "the cluster $name exists; it is used as it is"
else
    say "making the cluster $name ($config) with kind and $runtime"
    kind create cluster --name "$name" --config "$config" ${node_image:+--image "$node_image"}
fi
say "loading ${archives[*]} into its nodes"
kind load image-archive --name "$name" "${archives[@]}"
say "applying $manifest"
kubectl --context "kind-$name" apply -f "$manifest"
say "waiting for a daemon on every node"
kubectl --context "kind-$name" -n sidestep rollout status daemonset/sidestep-node --timeout=180s
say "ready. Remove it with:$([ "$runtime" = docker ] || echo " KIND_EXPERIMENTAL_PROVIDER=$runtime") kind delete cluster --name $name"
