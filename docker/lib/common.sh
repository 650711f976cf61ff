# Words that every part of start-cluster.sh uses. All of its waits are bounded by wait_until.
# shellcheck shell=bash

# Prints a line of progress with the seconds since the start.
say() { printf '%4ds  %s\n' "$SECONDS" "$1"; }

# Ends the run with one line that says what is wrong and what to do.
fail() { printf 'start-cluster.sh: %s\n' "$1" >&2; exit 1; }

have() { command -v "$1" > /dev/null 2>&1; }

as_root() {
  if [ "$EUID" -eq 0 ]; then
    "$@"
  elif have sudo; then
    sudo "$@"
  else
    fail "'$1' needs root here: run this as root or install sudo"
  fi
}

# The container of a node: pg01 in the default cluster, NAME-pg01 in others.
container() {
  if [ "$cluster" = pgcm ]; then echo "$1"; else echo "$cluster-$1"; fi
}

# in_node NODE COMMAND...: runs it there as root; as_postgres: as the owner of Postgres.
in_node() { local node=$1; shift; docker exec -i "$(container "$node")" "$@"; }
as_postgres() { local node=$1; shift; docker exec -i -u postgres "$(container "$node")" "$@"; }

# on_each COMMAND NODE...: runs `COMMAND NODE` for all of them at once; fails when one failed.
on_each() {
  local command=$1 node status=0 pids=()
  shift
  for node in "$@"; do
    "$command" "$node" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || status=1
  done
  return "$status"
}

# wait_until SECONDS WHAT COMMAND...: true as soon as COMMAND is; after SECONDS explains and ends the run.
wait_until() {
  local limit_s=$1 what=$2 deadline
  shift 2
  deadline=$((SECONDS + limit_s))
  until "$@" > /dev/null 2>&1; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      explain_timeout "$what" "$limit_s"
      exit 1
    fi
    sleep 0.3
  done
}

# Says what was awaited, how the cluster looks, and where to read on.
explain_timeout() {
  local node
  {
    printf '\nstart-cluster.sh: gave up after %s s waiting for: %s\n\n' "$2" "$1"
    docker ps -a --filter "label=$label" --format '  {{.Names}}\t{{.Status}}'
    for node in "${pg_nodes[@]}"; do
      if in_node "$node" timeout 10 crm_mon -1Afr 2> /dev/null; then break; fi
    done
    [ ! -s "$work_dir/health" ] || cat "$work_dir/health"
    printf "\nThe logs: %s; to start over: %s\n" "${invocation}logs" "${invocation}down && ${invocation}up"
  } >&2
}
