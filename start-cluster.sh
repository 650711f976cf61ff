#!/bin/bash
# Boots the playground: a real pgcm cluster in four containers on this machine. See usage below.
# The parts are in docker/: lib/ (this script's functions), image/ (the node image), seeds/ (the
# configuration files that the nodes get).
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: ./start-cluster.sh [up|demo|down|logs|image] [--debian trixie|bookworm] [--mode sync|quorum|async]

  up      build pgcm and the node image, boot pg01, pg02, pg03 and app01, wait until
          all is healthy (the default). Safe to repeat; installs a changed pgcm.
  demo    8 clients commit through app01 while the primary moves; prints what they saw
  down    remove the containers, the network and the data
  logs    the newest log lines of every node
  image   only build the node image

  --debian  13, trixie (the default): Postgres 17, Pacemaker 3.0
            12, bookworm: Postgres 15, Pacemaker 2.1
  --mode    the resource agent's rep_mode (default sync); a running cluster is switched

Environment:
  PGCM_CLUSTER    name of the cluster (default pgcm). Others live beside it: containers
                  NAME-pg01 ..., network NAME, no published port
  PGCM_BINARY     an already built pgcm to install instead of building one
  PGCM_MODE       same as --mode, which outweighs it
  PGCM_DISK_MB    gives each node's Postgres a disk of this size (needs root, for loop devices)
  PGCM_LOG_LINES  lines that `logs` prints of each log (default 40)
TEXT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=docker/lib/common.sh
. "$root/docker/lib/common.sh"
# shellcheck source=docker/lib/host.sh
. "$root/docker/lib/host.sh"
# shellcheck source=docker/lib/image.sh
. "$root/docker/lib/image.sh"
# shellcheck source=docker/lib/files.sh
. "$root/docker/lib/files.sh"
# shellcheck source=docker/lib/nodes.sh
. "$root/docker/lib/nodes.sh"
# shellcheck source=docker/lib/bootstrap.sh
. "$root/docker/lib/bootstrap.sh"
# shellcheck source=docker/lib/health.sh
. "$root/docker/lib/health.sh"
# shellcheck source=docker/lib/logs.sh
. "$root/docker/lib/logs.sh"
# shellcheck source=docker/lib/demo.sh
. "$root/docker/lib/demo.sh"

cluster=${PGCM_CLUSTER:-pgcm}
network=$cluster
label=pgcm.cluster=$cluster
usr_volume=$cluster-usr
pg_nodes=(pg01 pg02 pg03)
nodes=("${pg_nodes[@]}" app01)
invocation="./start-cluster.sh "
[ "$cluster" = pgcm ] || invocation="PGCM_CLUSTER=$cluster ./start-cluster.sh "

up() {
  local existing
  need_docker
  check_names_are_ours
  existing=$(finished_cluster)
  debian=${wanted_debian:-${existing:-trixie}}
  need_binary
  if [ -n "$existing" ] && [ "$existing" = "$debian" ]; then
    revive
    switch_mode || fail "the replication mode could not be switched; see above"
  else
    create "$existing"
  fi
  wait_until 90 "primary, two standbys in their roles, and four PgBouncers that commit" is_healthy
  say "the cluster is up"
  print_tour
}

# The containers are there: starts those that are not running, and brings pgcm up to date.
revive() {
  local node
  collect_pgcm
  for node in "${nodes[@]}"; do
    [ "$(container_state "$node")" = running ] && continue
    say "starting $node"
    start_node "$node" || fail "$node does not start; see above"
  done
  for node in "${nodes[@]}"; do wait_until 60 "systemd on $node" booted "$node"; done
  update_pgcm || fail "pgcm could not be installed; see above"
}

# Nothing usable is there: builds everything.
create() {
  [ -z "$1" ] || say "replacing the cluster on Debian $1"
  remove_cluster
  check_port_is_free
  need_image
  check_binary_runs
  collect_pgcm
  make_nodes
  bootstrap
  say "waiting for the primary, its standbys and the PgBouncers"
}

down() {
  need_docker
  remove_cluster
  say "the playground '$cluster' is gone; its images stay"
}

image() {
  need_docker
  debian=${wanted_debian:-trixie}
  need_image
}

logs() {
  local node
  need_docker
  for node in "${nodes[@]}"; do node_logs "$node"; done
}

main() {
  local command=up
  wanted_debian=
  wanted_mode=${PGCM_MODE:-}
  while [ $# -gt 0 ]; do
    case "$1" in
      up|demo|down|logs|image) command=$1 ;;
      --debian) [ $# -gt 1 ] || fail "--debian needs trixie or bookworm"; wanted_debian=$2; shift ;;
      --debian=*) wanted_debian=${1#*=} ;;
      --mode) [ $# -gt 1 ] || fail "--mode needs sync, quorum or async"; wanted_mode=$2; shift ;;
      --mode=*) wanted_mode=${1#*=} ;;
      -h|--help) usage; exit 0 ;;
      *) usage >&2; exit 2 ;;
    esac
    shift
  done
  case "$wanted_debian" in
    13) wanted_debian=trixie ;;
    12) wanted_debian=bookworm ;;
    ''|trixie|bookworm) ;;
    *) fail "--debian takes trixie or bookworm, not '$wanted_debian'" ;;
  esac
  case "$wanted_mode" in
    ''|sync|quorum|async) ;;
    *) fail "--mode takes sync, quorum or async, not '$wanted_mode'" ;;
  esac
  [[ "$cluster" =~ ^[a-z0-9][a-z0-9-]*$ ]] || fail "PGCM_CLUSTER='$cluster' must consist of a-z, 0-9 and -"
  work_dir=$(mktemp -d /var/tmp/pgcm-playground.XXXXXX)
  trap 'rm -rf --one-file-system "$work_dir"' EXIT
  "$command"
}

main "$@"
