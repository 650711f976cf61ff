# What "up" means: one primary, two standbys in the roles that rep_mode gives them, and four PgBouncers
# that answer user app and commit.
# shellcheck shell=bash

# Says what is missing; silent and true when nothing is.
cluster_problems() {
  local node statuses expected
  for node in "${nodes[@]}"; do
    [ "$(container_state "$node")" = running ] || { echo "$(container "$node") does not run"; return 1; }
  done
  statuses=$(in_node pg01 timeout 5 attrd_updater --query --all --name Postgresql-status 2> /dev/null | sed -n 's/.*value="\(.*\)".*/\1/p' | sort | paste -sd' ')
  expected=$(expected_statuses)
  if [ "$statuses" != "$expected" ]; then
    echo "Postgresql-status is '$statuses' instead of '$expected'"
    return 1
  fi
  # A failover may be the first thing that somebody tries: what is published must have come as far.
  if [ "$(current_mode)" != async ] && ! synchronous_standby_is_published; then
    echo "pgcm has published no synchronous standby"
    return 1
  fi
  on_each pgbouncer_problem "${nodes[@]}"
}

synchronous_standby_is_published() {
  local status
  # Its exit code is about more than this.
  status=$(in_node app01 timeout 15 pgcm status --output json 2> /dev/null) || true
  grep -qE '"sync_state": ?"(sync|quorum)"' <<< "$status"
}

# What the three nodes say of themselves when all is well, sorted.
expected_statuses() {
  case "$(current_mode)" in
    quorum) echo "HS:quorum HS:quorum PRI" ;;
    async) echo "HS:async HS:async PRI" ;;
    *) echo "HS:potential HS:sync PRI" ;;
  esac
}

pgbouncer_problem() {
  local answer
  answer=$(docker exec -i -e PGPASSWORD=app -e PGCONNECT_TIMEOUT=5 "$(container "$1")" \
    timeout 15 psql -X -A -t -q -v ON_ERROR_STOP=1 -v via="$1" -h 127.0.0.1 -p 6432 -U app app 2>&1 <<'SQL'
SELECT 1;
INSERT INTO playground_visit (via) VALUES (:'via') ON CONFLICT (via) DO UPDATE SET at = now();
SELECT pg_is_in_recovery();
SQL
  ) && [ "$answer" = $'1\nf' ] && return
  echo "PgBouncer on $1: ${answer//$'\n'/ }"
  return 1
}

is_healthy() { cluster_problems > "$work_dir/health" 2>&1; }

# The end of `up`: the cluster as pgcm sees it, and where to go from here.
print_tour() {
  echo
  in_node app01 pgcm status || true
  printf '\nWhat to try next:\n'
  try "docker exec $(container app01) pgcm failover" "move the primary; clients only wait"
  try "docker exec $(container pg01) crm_mon -Afr -1" "the cluster as Pacemaker sees it"
  try "docker exec $(container pg01) etcdctl get --prefix /postgres/master" "the address that pgcm published"
  [ "$cluster" != pgcm ] || try "psql postgresql://app:app@127.0.0.1:6432/app" "your own queries, from this machine"
  try "docker kill $(container pg01)" "a crash; bring it back with docker start $(container pg01)"
  try "${invocation}demo" "a failover under load, as its clients see it"
  try "${invocation}logs" "what every part has to say"
  try "${invocation}down" "remove it all"
}

try() { printf '  %-64s %s\n' "$1" "$2"; }
