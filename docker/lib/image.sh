# The images: a bare Debian, and from it the node image.
# shellcheck shell=bash

has_image() { docker image inspect "$1" > /dev/null 2>&1; }

# Prints the name of a bare Debian image: one that is here, else pulled, else made by debootstrap.
base_image() {
  local candidate
  for candidate in "pgcm-base:$debian" "debian:$debian-slim"; do
    if has_image "$candidate"; then echo "$candidate"; return; fi
  done
  say "pulling debian:$debian-slim" >&2
  if timeout 90 docker pull --quiet "debian:$debian-slim" > "$work_dir/pull.log" 2>&1; then
    echo "debian:$debian-slim"
    return
  fi
  say "no registry answers; making Debian $debian with debootstrap instead (about a minute)" >&2
  debootstrap_image >&2
  echo "pgcm-base:$debian"
}

debootstrap_image() {
  local tree=$work_dir/debootstrap scripts=/usr/share/debootstrap/scripts source=()
  PATH=$PATH:/usr/sbin:/sbin
  have debootstrap || need_packages debootstrap
  # A release younger than debootstrap is made like sid, as all of them are; an empty mirror is its default one.
  [ -e "$scripts/$debian" ] || source=("" "$scripts/sid")
  # debootstrap refuses directories on file systems mounted nodev or noexec, as some /tmp are.
  as_root debootstrap --variant=minbase "$debian" "$tree" "${source[@]}" > "$work_dir/debootstrap.log" 2>&1 \
    || { tail -n 5 "$work_dir/debootstrap.log" >&2; fail "debootstrap could not make Debian $debian"; }
  as_root tar -C "$tree" -c . | docker import - "pgcm-base:$debian" > /dev/null
  as_root rm -rf "$tree"
}

# Sets $image and builds it where needed: a second or two when nothing changed.
need_image() {
  image=pgcm-node:$debian
  build_image "$image" "$root/docker/image"
}

# build_image NAME DIRECTORY: builds the image NAME on a bare Debian $debian.
build_image() {
  local base
  base=$(base_image) || exit 1
  if has_image "$1"; then
    say "checking the image $1"
  else
    say "building the image $1 on Debian $debian (a few minutes, once)"
  fi
  if ! docker build --build-arg "BASE=$base" --tag "$1" "$2" > "$work_dir/build.log" 2>&1; then
    tail -n 20 "$work_dir/build.log" >&2
    fail "the image $1 does not build; the end of the log is above"
  fi
}
