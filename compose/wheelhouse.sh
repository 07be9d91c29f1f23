#!/usr/bin/env bash
# Fills compose/wheels/ with what zkbeat needs, for an image build that cannot reach a package index
# (compose/Dockerfile then fetches nothing). zkbeat itself is not among it: the image builds that from the
# checkout, so it is never older than the checkout.
#
#   compose/wheelhouse.sh [PYTHON_VERSION]     the image's Python, not this machine's; default 3.12
#
# PYTHON names the interpreter whose pip does it (default: python3). The wheels are for Linux on this
# machine's architecture.
set -euo pipefail

readonly VERSION=${1:-3.12}
readonly PYTHON=${PYTHON:-python3}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly HERE

if [[ ! $VERSION =~ ^3\.[0-9]+$ ]]; then
    echo "usage: compose/wheelhouse.sh [PYTHON_VERSION, as in 3.12]" >&2
    exit 2
fi

arch=$(uname -m)
[[ $arch != arm64 ]] || arch=aarch64 # macOS' name for it

# Filled elsewhere and then put in place, so that a build never sees half of it.
new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT

own=$new/own
wheels=$new/wheels
mkdir "$own" "$wheels"
"$PYTHON" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$own" "$HERE/.."

# pip decides with the version of its *own* Python whether a conditional requirement applies. What another
# version may need is therefore named here; a wheel too many does no harm.
readonly CONDITIONAL=(async-timeout exceptiongroup tomli typing-extensions)

platforms=()
for glibc in 17 28 34; do
    platforms+=(--platform "manylinux_2_${glibc}_$arch")
done
platforms+=(--platform "manylinux2014_$arch")

# hatchling, because the image builds zkbeat with it.
"$PYTHON" -m pip download --quiet --disable-pip-version-check --dest "$wheels" \
    --implementation cp --python-version "$VERSION" --only-binary=:all: "${platforms[@]}" \
    "$own"/zkbeat-*.whl 'celery[redis]' hatchling "${CONDITIONAL[@]}"
rm -f "$wheels"/zkbeat-*.whl

rm -rf "$HERE/wheels"
mv "$wheels" "$HERE/wheels"
echo "compose/wheels: $(find "$HERE/wheels" -name '*.whl' | wc -l) wheels for Python $VERSION on $arch" >&2
