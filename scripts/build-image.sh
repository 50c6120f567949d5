#!/bin/bash
# Builds a container image from a recipe into an OCI layout directory.
#
#   scripts/build-image.sh [options] RECIPE OUTDIR    build (or take from the cache)
#   scripts/build-image.sh [options] --resolve RECIPE print what would be built, as JSON
#
# 1. resolve: the recipe's packages to exact versions, from the machine's own mirror
# 2. key: recipe, files and versions, hashed; a finished image with this key is copied
# 3. root: mmdebstrap, wheels checked against their hashes, users, files
# 4. clean: nothing that belongs to this machine or this minute stays in
# 5. pack: one uncompressed layer, config and manifest; same inputs, same digests
#
# It never pushes, never runs a container, and names no mirror of its own.
# The layer is not compressed: ostree takes it apart into files anyway, and the
# digests then do not depend on anybody's gzip.
set -euo pipefail

readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
# Package lists younger than this are not fetched again: a lock asks several times in a row.
readonly LISTS_FRESH_MINUTES=15
# Bump when the same recipe starts to give another image.
readonly BUILDER_VERSION=1

usage() {
    cat <<'HELP'
usage: build-image.sh [options] RECIPE OUTDIR
       build-image.sh [options] --resolve RECIPE
  --mirror URI            Debian mirror (default: the machine's own)
  --security-mirror URI   mirror of the -security suites (default: the machine's own, or beside --mirror)
  --suites A,B            suites, the first one is the release (default: the recipe's)
  --no-cache              build even if a finished image is in the cache
The cache is ${RACKSTEP_CACHE:-~/.cache/rackstep}.
HELP
}

die() { echo "build-image: $*" >&2; exit 1; }
say() { echo "build-image: $*" >&2; }

mirror='' security_mirror='' suites='' resolve_only='' use_cache=yes
args=()
while [ $# -gt 0 ]; do
    case $1 in
        --mirror) mirror=${2:?--mirror wants a URI}; shift 2 ;;
        --security-mirror) security_mirror=${2:?--security-mirror wants a URI}; shift 2 ;;
        --suites) suites=${2:?--suites wants names}; shift 2 ;;
        --resolve) resolve_only=yes; shift ;;
        --no-cache) use_cache=''; shift ;;
        -h|--help) usage; exit 0 ;;
        -*) usage >&2; exit 2 ;;
        *) args+=("$1"); shift ;;
    esac
done
if [ -n "$resolve_only" ]; then want_args=1; else want_args=2; fi
[ ${#args[@]} -eq "$want_args" ] || { usage >&2; exit 2; }
recipe=${args[0]}
outdir=${args[1]:-}
[ -f "$recipe" ] || die "recipe $recipe: no such file"
recipe_dir=$(cd "$(dirname "$recipe")" && pwd)

for tool in apt-get jq mmdebstrap sha256sum tar unzip flock; do
    command -v "$tool" >/dev/null || die "$tool is not installed"
done
# The system's Python: another one on PATH may lack the YAML module.
readonly PYTHON=/usr/bin/python3
"$PYTHON" -c 'import yaml' 2>/dev/null || die "python3-yaml is not installed"

cache=${RACKSTEP_CACHE:-$HOME/.cache/rackstep}
mkdir -p "$cache/images" "$cache/wheels" "$cache/apt"
work=$(mktemp -d "${TMPDIR:-/var/tmp}/rackstep-image.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT

# --- the recipe ------------------------------------------------------------
# `include` names another recipe whose fields come first: lists append, maps merge, scalars override. Its files stand
# beside itself.
"$PYTHON" - "$recipe" > "$work/recipe.json" <<'PYTHON' || die "recipe $recipe: not valid YAML"
import json
import os
import sys

import yaml


def load(path):
    with open(path, encoding="utf-8") as file:
        recipe = yaml.safe_load(file)
    include = recipe.pop("include", None)
    if include is None:
        return recipe
    directory = os.path.dirname(path)
    base = load(os.path.join(directory, include))
    beside = os.path.dirname(include)
    base["files"] = {os.path.normpath(os.path.join(beside, name)): to for name, to in base.get("files", {}).items()}
    for field, value in recipe.items():
        if isinstance(value, list):
            value = base.get(field, []) + value
        elif isinstance(value, dict):
            value = {**base.get(field, {}), **value}
        base[field] = value
    return base


json.dump(load(sys.argv[1]), sys.stdout, default=str)
PYTHON
field() { jq -r "$1" "$work/recipe.json"; }

unknown=$(field '(keys - ["name","version","created","suites","base","packages","users","system_users","pip","files","directories","exclude","remove","entrypoint","env","workdir"]) | join(" ")')
[ -z "$unknown" ] || die "recipe $recipe: unknown field: $unknown"
name=$(field '.name // empty')
[ -n "$name" ] || die "recipe $recipe: field name is missing"
base=$(field '.base // "essential"')
case $base in essential|none) ;; *) die "recipe $recipe: base is \"$base\", expected essential or none" ;; esac
suites=${suites:-$(field '.suites // ["trixie", "trixie-security"] | join(",")')}
release=${suites%%,*}
created=$(field '.created // "2025-01-01T00:00:00Z"')
SOURCE_DATE_EPOCH=$(date -u -d "$created" +%s) || die "recipe $recipe: created \"$created\" is not a date"
export SOURCE_DATE_EPOCH

# --- where packages come from ----------------------------------------------
# The machine's own mirror: whoever runs apt here already trusts and reaches it.
machine_mirror() {
    apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' \
        | awk -F'|' -v label="$1" '$1 == "Debian" && $2 == label { print $3; exit }'
}
if [ -n "$mirror" ]; then
    security_mirror=${security_mirror:-$(echo "${mirror%/}" | sed 's,/debian$,/debian-security,')}
else
    mirror=$(machine_mirror Debian)
    security_mirror=${security_mirror:-$(machine_mirror Debian-Security)}
    [ -n "$mirror" ] || die "apt knows no Debian mirror here: run apt-get update, or give --mirror"
fi
for suite in ${suites//,/ }; do
    uri=$mirror
    case $suite in *-security) uri=$security_mirror ;; esac
    [ -n "$uri" ] || die "apt knows no mirror for $suite here: give --security-mirror, or --suites without it"
    echo "deb [signed-by=$KEYRING] $uri $suite main"
done > "$work/sources.list"

# --- 1. resolve --------------------------------------------------------------
# A package world of our own: nothing of this machine's packages leaks in.
lists=$cache/apt/$(sha256sum < "$work/sources.list" | cut -c1-16)
mkdir -p "$lists/state/lists/partial" "$lists/cache/archives/partial"
cp "$work/sources.list" "$lists/sources.list"
apt_opts=(
    -o "Dir::State=$lists/state" -o "Dir::Cache=$lists/cache" -o "Dir::State::status=/dev/null"
    -o "Dir::Etc::sourcelist=$lists/sources.list" -o "Dir::Etc::sourceparts=/dev/null"
    -o "Dir::Etc::preferences=/dev/null" -o "Dir::Etc::preferencesparts=/dev/null"
    -o "APT::Architecture=amd64" -o "APT::Architectures=amd64" -o "APT::Install-Recommends=false"
    -o "APT::Sandbox::User=root" -o "Acquire::Languages=none" -o "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"
)
refresh_lists() {
    exec 9> "$lists/lock"
    flock 9
    if [ -z "$(find "$lists/fresh" -mmin "-$LISTS_FRESH_MINUTES" 2>/dev/null)" ]; then
        apt-get "${apt_opts[@]}" -qq update >&2 || die "fetching package lists of $suites failed"
        touch "$lists/fresh"
    fi
    exec 9>&-
}
refresh_lists

mapfile -t packages < <(field '.packages // [] | .[]')
wanted=("${packages[@]}")
if [ "$base" = essential ]; then
    # apt counts itself as essential; an image has no use for it.
    mapfile -t essential < <(apt-cache "${apt_opts[@]}" dumpavail \
        | awk '/^Package:/ { p = $2 } /^Essential: yes/ { print p }' | sort -u)
    wanted+=("${essential[@]}")
fi
# A name without a candidate would only be reported deep inside the build.
missing=$(comm -23 <(printf '%s\n' "${packages[@]}" | sed 's/[=:].*//' | sort -u) \
    <(apt-cache "${apt_opts[@]}" pkgnames | sort -u) | xargs)
[ -z "$missing" ] || die "recipe $recipe: not in $suites: $missing"
if [ "$base" = essential ]; then
    # "Inst name (version suite [arch])"
    simulate() {
        apt-get "${apt_opts[@]}" -qq -s install "$@" > "$work/simulated" \
            || die "recipe $recipe: its packages cannot be installed together from $suites"
        sed -nE 's/^Inst ([^ ]+) \(([^ ]+) .*/\1=\2/p' "$work/simulated" | sort
    }
    # In the order of the build: what the essential packages need is there before the recipe's own are chosen, so that
    # "one of these" is answered alike (mawk, though something may bring gawk later).
    mapfile -t first < <(simulate "${essential[@]}" | sed 's/=.*//')
    simulate "${wanted[@]}" "${first[@]}" > "$work/packages"
else
    # Without a base nothing is configured, so nothing is depended upon either.
    for package in "${wanted[@]}"; do
        apt-cache "${apt_opts[@]}" show --no-all-versions "$package" \
            | awk '/^Package:/ { p = $2 } /^Version:/ { print p "=" $2 }'
    done | sort > "$work/packages"
fi

# --- 2. key ------------------------------------------------------------------
requirements=$(field '.pip.requirements // empty')
{
    echo "builder $BUILDER_VERSION"
    jq -S . "$work/recipe.json"
    cat "$work/packages"
    for source in $(field '.files // {} | keys[]') $requirements; do
        [ -f "$recipe_dir/$source" ] || die "recipe $recipe: file $source: no such file"
        echo "$source $(sha256sum < "$recipe_dir/$source") $(stat -c %a "$recipe_dir/$source")"
    done
} > "$work/inputs"
key=$(sha256sum < "$work/inputs" | cut -d' ' -f1)

if [ -n "$resolve_only" ]; then
    jq -n --arg name "$name" --arg key "$key" --arg version "$(field '.version // ""')" \
        --rawfile packages "$work/packages" \
        '{name: $name, version: $version, key: $key, packages: ($packages | split("\n") | map(select(. != "")))}'
    exit 0
fi

copy_out() {
    [ ! -e "$outdir" ] || die "$outdir exists already"
    mkdir -p "$(dirname "$outdir")"
    cp -a --reflink=auto "$1" "$outdir.part"
    mv "$outdir.part" "$outdir"
    jq -r '"\(.name) \(.config_digest) \(.size)"' "$outdir/rackstep-image.json"
}
finished=$cache/images/$key
if [ -n "$use_cache" ] && [ -f "$finished/rackstep-image.json" ]; then
    say "$name: from the cache, key $key"
    copy_out "$finished"
    exit 0
fi
[ "$(id -u)" = 0 ] || die "building needs root (mmdebstrap, file owners)"
[ ! -e "${outdir}" ] || die "$outdir exists already"

# --- 3. root -----------------------------------------------------------------
root=$work/root
excludes=(
    '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/info/*' '/usr/share/locale/*'
    '/usr/share/lintian/*' '/usr/share/bash-completion/*' '/usr/lib/x86_64-linux-gnu/gconv/*'
)
mapfile -t more < <(field '.exclude // [] | .[]')
dpkg_opts=()
for path in "${excludes[@]}" "${more[@]}"; do
    [ -z "$path" ] || dpkg_opts+=("--dpkgopt=path-exclude=$path")
done
# Licences stay: an image is a redistribution.
dpkg_opts+=("--dpkgopt=path-include=/usr/share/doc/*/copyright" "--dpkgopt=force-unsafe-io")
if [ "$base" = essential ]; then variant=essential; else variant=extract; fi
hooks=()
[ "$base" != essential ] || hooks=(--essential-hook='mkdir -p "$1/usr/local/bin" && ln -s /bin/true "$1/usr/local/bin/py3compile"'
    --customize-hook='rm "$1/usr/local/bin/py3compile"')
# Packages' own scripts make users with the next free id, unless they are there already: /etc/passwd is laid before.
while IFS=$'\t' read -r user id home; do
    hooks+=(--essential-hook="echo '$user:x:$id:' >> \"\$1/etc/group\" && echo '$user:x:$id:$id::$home:/usr/sbin/nologin' >> \"\$1/etc/passwd\" && echo '$user:!:1::::::' >> \"\$1/etc/shadow\"")
done < <(field '.system_users // {} | to_entries[] | [.key, .value.id, .value.home] | @tsv')
say "$name: installing $(wc -l < "$work/packages") packages"
include=$(IFS=,; echo "${packages[*]}")
# PATH by hand, for dpkg too (apt gives it one of its own): the machine's may name places that do not exist
# in the root. Postinsts find our py3compile first, which does nothing: step 4 compiles all of Python at once.
PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 \
mmdebstrap --mode=root --format=directory --variant="$variant" --architectures=amd64 \
    --components=main ${include:+--include="$include"} "${dpkg_opts[@]}" "${hooks[@]}" \
    --aptopt='Acquire::Languages "none"' --aptopt='DPkg::Path "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"' \
    "$release" "$root" "$work/sources.list" > "$work/mmdebstrap.log" 2>&1 \
    || { grep -aE "^(E:|dpkg|W:)|rror" "$work/mmdebstrap.log" >&2; die "$name: mmdebstrap failed"; }

if [ "$base" = essential ]; then
    dpkg-query --admindir="$root/var/lib/dpkg" -W -f '${Package}=${Version}\n' | sort > "$work/installed"
    diff -u "$work/packages" "$work/installed" >&2 \
        || die "$name: what was installed is not what was resolved (did the mirror change meanwhile?)"
fi

if [ -n "$requirements" ]; then
    target=$(field '.pip.target // empty')
    [ -n "$target" ] || die "recipe $recipe: pip.target is missing"
    python_version=$(basename "$(ls -d "$root"/usr/lib/python3.[0-9]* | head -n 1)" | sed 's/^python//')
    wheels=$cache/wheels/$(sha256sum < "$recipe_dir/$requirements" | cut -c1-16)
    if [ ! -f "$wheels/complete" ]; then
        say "$name: fetching wheels for Python $python_version"
        rm -rf "$wheels"
        platforms=()
        for tag in manylinux_2_5 manylinux_2_17 manylinux_2_28 manylinux_2_34 manylinux2014; do
            platforms+=(--platform "${tag}_x86_64")
        done
        # --require-hashes: a wheel that is not the one in the list is refused.
        "$PYTHON" -m pip download --quiet --disable-pip-version-check --require-hashes --no-deps \
            --only-binary=:all: --implementation cp --python-version "$python_version" \
            "${platforms[@]}" --dest "$wheels" -r "$recipe_dir/$requirements" >&2 \
            || die "$name: fetching the wheels of $requirements failed"
        touch "$wheels/complete"
    fi
    mkdir -p "$root$target"
    for wheel in "$wheels"/*.whl; do
        # A wheel is a zip of what goes on the path, plus <name>.data for the rest.
        unzip -q -n "$wheel" -d "$root$target"
    done
    for data in "$root$target"/*.data; do
        [ -d "$data" ] || continue
        for part in purelib platlib; do
            [ ! -d "$data/$part" ] || cp -a "$data/$part/." "$root$target/"
        done
        rm -rf "$data"
    done
    # Entry points become plain scripts, for those the recipe names.
    mkdir -p "$root$target/../bin"
    while IFS=$'\t' read -r script module function; do
        printf '#!/usr/bin/python3\nimport sys\nfrom %s import %s\nsys.exit(%s())\n' \
            "$module" "$function" "$function" > "$root$target/../bin/$script"
        chmod 0755 "$root$target/../bin/$script"
    done < <(field '.pip.scripts // {} | to_entries[] | [.key, (.value | split(":")[0]), (.value | split(":")[1])] | @tsv')
    chown -R 0:0 "$root$target" "$root$target/../bin"
    chmod -R u=rwX,go=rX "$root$target"
fi

# Fixed ids: a volume written by one release must belong to the same user in the next.
while IFS=$'\t' read -r user id home; do
    grep -q "^$user:" "$root/etc/passwd" && die "recipe $recipe: user $user exists already in $release"
    echo "$user:x:$id:" >> "$root/etc/group"
    echo "$user:x:$id:$id::$home:/usr/sbin/nologin" >> "$root/etc/passwd"
    echo "$user:!:1::::::" >> "$root/etc/shadow"
    [ -d "$root$home" ] || install -d -m 0750 -o "$id" -g "$id" "$root$home"
done < <(field '.users // {} | to_entries[] | [.key, .value.id, .value.home] | @tsv')

while IFS=$'\t' read -r user id; do
    grep -q "^$user:[^:]*:$id:" "$root/etc/passwd" || die "recipe $recipe: user $user has another id than $id after installation"
done < <(field '.system_users // {} | to_entries[] | [.key, .value.id] | @tsv')

while IFS=$'\t' read -r source dest; do
    mkdir -p "$root$(dirname "$dest")"
    cp "$recipe_dir/$source" "$root$dest"
    if [ -x "$recipe_dir/$source" ]; then chmod 0755 "$root$dest"; else chmod 0644 "$root$dest"; fi
done < <(field '.files // {} | to_entries[] | [.key, .value] | @tsv')
while IFS=$'\t' read -r dir owner mode; do
    mkdir -p "$root$dir"
    chroot "$root" chown "$owner" "$dir"
    chmod "$mode" "$root$dir"
done < <(field '.directories // {} | to_entries[] | [.key, .value.owner // "root:root", .value.mode // "0755"] | @tsv')

# --- 4. clean ----------------------------------------------------------------
while read -r path; do
    # Unquoted on purpose: recipes may use globs.
    # shellcheck disable=SC2086
    rm -rf -- "$root"$path
done < <(field '.remove // [] | .[]')
# Postinsts would compile Python one package at a time, with times of day in the result: compile in
# one go and keyed by content. Compiled it must be: a one-shot phase would pay for it on every run.
if [ -x "$root/usr/bin/python3" ]; then
    find "$root" -xdev -name __pycache__ -type d -prune -exec rm -rf {} +
    compile=()
    for dir in /usr/lib/python3 /usr/lib/python3.[0-9]* $(field '.pip.target // empty'); do
        for found in "$root"$dir; do [ ! -d "$found" ] || compile+=("${found#"$root"}"); done
    done
    # Modules for other Python versions fail to compile; that is theirs.
    PYTHONHASHSEED=0 chroot "$root" python3 -m compileall -q -j 1 --invalidation-mode unchecked-hash \
        "${compile[@]}" > /dev/null 2>&1 || true
fi
rm -rf "$root"/etc/{hostname,resolv.conf,machine-id,mtab,.pwd.lock,passwd-,group-,shadow-,gshadow-,subuid-,subgid-} \
    "$root"/var/lib/dbus/machine-id "$root"/etc/ssh/ssh_host_* "$root"/etc/apt \
    "$root"/var/lib/apt "$root"/var/lib/dpkg/{*-old,lock*,triggers/Lock} "$root"/var/lib/systemd \
    "$root"/var/cache/{apt,debconf,ldconfig} "$root"/var/cache/fontconfig \
    "$root"/root/.cache "$root"/root/.bash_history "$root"/etc/dpkg/dpkg.cfg.d
find "$root"/var/log "$root"/tmp "$root"/var/tmp "$root"/run "$root"/dev -xdev -mindepth 1 -delete 2>/dev/null || true
# adduser and friends note the day of the last password change.
[ ! -f "$root/etc/shadow" ] || sed -i -E "s/^([^:]*:[^:]*):[0-9]+:/\1:$((SOURCE_DATE_EPOCH / 86400)):/" "$root/etc/shadow"

# --- 5. pack -----------------------------------------------------------------
layout=$work/layout
mkdir -p "$layout/blobs/sha256"
tar --directory "$root" --create --file "$work/layer.tar" --sort=name --numeric-owner --format=posix \
    --pax-option='exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime' \
    --mtime="@$SOURCE_DATE_EPOCH" --clamp-mtime --xattrs --xattrs-include='security.capability' \
    --one-file-system .
put_blob() {
    local digest
    digest=$(sha256sum < "$1" | cut -d' ' -f1)
    mv "$1" "$layout/blobs/sha256/$digest"
    echo "$digest"
}
layer_size=$(stat -c %s "$work/layer.tar")
layer=$(put_blob "$work/layer.tar")
jq -S -c --arg layer "sha256:$layer" --arg created "$created" '{
    architecture: "amd64", os: "linux", created: $created,
    config: ({
        Env: ((["PATH=" + (.env.PATH // "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")])
            + ((.env // {}) | del(.PATH) | to_entries | map("\(.key)=\(.value)"))),
        Entrypoint: .entrypoint, WorkingDir: (.workdir // "/"),
        Labels: {"org.opencontainers.image.title": .name, "org.opencontainers.image.version": (.version // "" | tostring)}
    } | with_entries(select(.value != null))),
    rootfs: {type: "layers", diff_ids: [$layer]},
    history: [{created: $created, created_by: ("rackstep recipe " + .name)}]
}' "$work/recipe.json" > "$work/config.json"
config_size=$(stat -c %s "$work/config.json")
config=$(put_blob "$work/config.json")
jq -n -S -c --arg config "sha256:$config" --argjson config_size "$config_size" \
    --arg layer "sha256:$layer" --argjson layer_size "$layer_size" '{
    schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
    config: {mediaType: "application/vnd.oci.image.config.v1+json", digest: $config, size: $config_size},
    layers: [{mediaType: "application/vnd.oci.image.layer.v1.tar", digest: $layer, size: $layer_size}]
}' > "$work/manifest.json"
manifest_size=$(stat -c %s "$work/manifest.json")
manifest=$(put_blob "$work/manifest.json")
jq -n -S -c --arg manifest "sha256:$manifest" --argjson size "$manifest_size" --arg name "$name" '{
    schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json",
    manifests: [{mediaType: "application/vnd.oci.image.manifest.v1+json", digest: $manifest, size: $size,
        platform: {architecture: "amd64", os: "linux"},
        annotations: {"org.opencontainers.image.ref.name": $name}}]
}' > "$layout/index.json"
echo '{"imageLayoutVersion":"1.0.0"}' > "$layout/oci-layout"
# Last, and the mark that the image is whole.
jq -n -S --arg name "$name" --arg version "$(field '.version // ""')" --arg key "$key" \
    --arg manifest "sha256:$manifest" --arg config "sha256:$config" --arg layer "sha256:$layer" \
    --argjson size "$layer_size" --rawfile packages "$work/packages" '{
    name: $name, version: $version, key: $key, manifest_digest: $manifest, config_digest: $config,
    diff_ids: [$layer], size: $size, packages: ($packages | split("\n") | map(select(. != "")))
}' > "$layout/rackstep-image.json"

if [ -n "$use_cache" ]; then
    rm -rf "$finished" "$finished.part.$$"
    cp -a --reflink=auto "$layout" "$finished.part.$$"
    mv -T "$finished.part.$$" "$finished"
fi
copy_out "$layout"
