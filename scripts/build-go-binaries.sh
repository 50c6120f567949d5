#!/bin/bash
# Builds the pinned Go binaries of the host image from their modules.
#
# No Debian release ships a kubelet or cri-dockerd, but the Go module proxy has
# both. Their own go.mod files cannot be built as dependencies as they stand:
# they replace their k8s.io/* "staging" modules by directories (kubernetes) or
# by other versions (cri-dockerd), and a replacement counts only in the main
# module. So each binary has a tiny main module in scripts/go/<name>/ that
# requires it and repeats its replacements, staging directories as their
# released versions. go.mod is the pin of the version, go.sum of every byte.
#
# podcheck is ours: kubelet's own reader of pods, from the same version of the
# same modules, for compose to call (scripts/go/podcheck/main.go).
#
# Same pins in, same bytes out: the toolchain is pinned too, paths are trimmed,
# no build date, no cgo.
#
# usage: build-go-binaries.sh [NAME...]              build what the cache lacks (default: all)
#        build-go-binaries.sh --update NAME VERSION  pin another version
# Prints "<sha256>  <path>" for each binary.

set -euo pipefail

GO_TOOLCHAIN=go1.24.13

pins=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/go
bin=${XDG_CACHE_HOME:-$HOME/.cache}/rackstep/bin

say() { echo "build-go-binaries: $*" >&2; }
die() { say "$*"; exit 1; }

module_of() {
    case $1 in
    kubelet | podcheck) echo k8s.io/kubernetes ;;
    cri-dockerd) echo github.com/Mirantis/cri-dockerd ;;
    *) die "no pinned binary is called $1 (cri-dockerd, kubelet, podcheck)" ;;
    esac
}

package_of() {
    case $1 in
    kubelet) echo k8s.io/kubernetes/cmd/kubelet ;;
    podcheck) echo . ;;
    *) module_of "$1" ;;
    esac
}

# The linker sets what the binary says of itself; an unset kubelet is "v0.0.0".
ldflags_of() {
    local name=$1 version=$2 minor package
    case $name in
    kubelet)
        minor=${version#v1.}
        minor=${minor%%.*}
        for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
            echo "-X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor" \
                "-X $package.gitTreeState=clean -X $package.buildDate=1970-01-01T00:00:00Z"
        done
        ;;
    cri-dockerd)
        echo "-X github.com/Mirantis/cri-dockerd/cmd/version.Version=${version#v}"
        echo "-X github.com/Mirantis/cri-dockerd/cmd/version.GitCommit=$version"
        ;;
    esac
}

# GOTOOLCHAIN is understood since Go 1.21; anything older cannot fetch the pinned toolchain.
ensure_go() {
    if command -v go >/dev/null && [[ $(go env GOVERSION) =~ ^go1\.([0-9]+) ]] && ((BASH_REMATCH[1] >= 21)); then
        :
    elif [[ -x /usr/lib/go-1.23/bin/go ]]; then
        PATH=/usr/lib/go-1.23/bin:$PATH
    else
        [[ $(id -u) == 0 ]] || die "needs Go 1.21 or newer: install golang-1.23-go (bookworm-backports) and run again"
        say "installing golang-1.23-go"
        apt-get install -y -qq --no-install-recommends golang-1.23-go >&2 ||
            apt-get install -y -qq --no-install-recommends -t bookworm-backports golang-1.23-go >&2 ||
            die "golang-1.23-go cannot be installed (is bookworm-backports configured?)"
        PATH=/usr/lib/go-1.23/bin:$PATH
    fi
    # The machine's own settings would end up in the binary: name each one.
    export GOTOOLCHAIN=$GO_TOOLCHAIN GOENV=off CGO_ENABLED=0 GOOS=linux GOARCH=amd64 GOAMD64=v1 \
        GOWORK=off GOFLAGS=-modcacherw GOEXPERIMENT=
}

field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

# render_replacements GOMOD VERSION: the replace lines for a main module of ours.
# A local directory becomes the released module of the same name: v1.34.4 has staging modules v0.34.4.
render_replacements() {
    go mod edit -json "$1" | python3 -c '
import json, sys
for r in json.load(sys.stdin).get("Replace") or []:
    old, new = r["Old"], r["New"]
    left = old["Path"] + (" " + old["Version"] if old.get("Version") else "")
    local = new["Path"].startswith(".")
    right = old["Path"] + " " + sys.argv[1] if local else new["Path"] + " " + new["Version"]
    print("replace", left, "=>", right)
' "v0.${2#v1.}"
}

version_of() {
    awk -v module="$(module_of "$1")" '$1 == "require" && $2 == module { print $3; exit }
        $1 == module && $2 ~ /^v/ { print $2; exit }' "$pins/$1/go.mod"
}

# Renders scripts/go/<name> for a version. The module's own go.sum vouches for
# most of the sums; the checksum database for the rest.
update() {
    local name=$1 version=$2 module downloaded
    module=$(module_of "$name")
    ensure_go
    mkdir -p "$pins/$name"
    cd "$pins/$name"
    rm -f go.mod go.sum
    downloaded=$(cd / && go mod download -json "$module@$version")
    {
        echo "module rackstep.invalid/$name"
        echo "go $(go mod edit -json "$(field GoMod <<<"$downloaded")" | field Go)"
        echo "require $module $version"
        render_replacements "$(field GoMod <<<"$downloaded")" "$version"
    } >go.mod
    cp "$(field Dir <<<"$downloaded")/go.sum" go.sum
    chmod 0644 go.sum
    # A blank import keeps the requirement; the tag keeps it out of every build. podcheck imports it itself.
    [[ $name == podcheck ]] ||
        printf '//go:build pin\n\n// Package pin keeps the requirement in go.mod.\npackage pin\n\nimport _ "%s"\n' "$(package_of "$name")" >pin.go
    go build -mod=mod -trimpath -buildvcs=false -tags pin -o /dev/null "$(package_of "$name")"
    say "pinned $name $version; set the same version in the treefile"
}

build() {
    local name=$1 version out
    version=$(version_of "$name")
    out=$bin/$name-$version/$name
    # A program of ours changes without its version.
    [[ $name != podcheck ]] || out=$bin/$name-$version-$(cat "$pins/$name"/* | sha256sum | cut -c1-12)/$name
    if [[ ! -x $out ]]; then
        ensure_go
        say "building $name $version with $GO_TOOLCHAIN"
        mkdir -p "$(dirname "$out")"
        # Linked beside its place and renamed: an interrupted build must not look finished.
        # shellcheck disable=SC2046
        (cd "$pins/$name" && go build -mod=readonly -trimpath -buildvcs=false \
            -ldflags "-s -w -buildid= $(ldflags_of "$name" "$version" | tr '\n' ' ')" \
            -o "$out.partial" "$(package_of "$name")")
        mv "$out.partial" "$out"
    fi
    sha256sum "$out"
}

if [[ ${1-} == --update ]]; then
    [[ $# == 3 ]] || die "usage: --update NAME VERSION"
    update "$2" "$3"
    exit
fi
[[ $# -gt 0 ]] || set -- cri-dockerd kubelet podcheck
for name in "$@"; do
    build "$name"
done
