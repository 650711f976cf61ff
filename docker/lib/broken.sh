# shellcheck shell=bash
# Building pgcm with one guard taken away, to show that a test sees what it guards against.

# Builds this tree with a patch, beside it: `build_broken PATCH [--release]`. Names the program in PGCM_BINARY.
build_broken() {
  local patch=$PWD/$1 name tree target profile=debug
  name=$(basename "$1" .patch)
  [ "${2:-}" != --release ] || profile=release
  target=${CARGO_TARGET_DIR:-$PWD/target}
  mkdir -p "$target"
  target=$(cd "$target" && pwd)
  tree=$(mktemp -d "${TMPDIR:-/var/tmp}/pgcm-broken.XXXXXX")
  git ls-files -z | tar --create --null --files-from=- | tar --extract --directory "$tree"
  git -C "$tree" apply "$patch"
  # Where this tree is built as well: all that pgcm depends on is there already.
  (cd "$tree" && CARGO_TARGET_DIR=$target cargo build ${2:+"$2"} --locked --quiet --bin pgcm)
  cp "$target/$profile/pgcm" "$target/pgcm-without-$name"
  rm -rf --one-file-system "$tree"
  export PGCM_BINARY=$target/pgcm-without-$name
}
