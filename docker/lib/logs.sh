# shellcheck shell=bash

# Prints the newest log lines of a node: pgcm, Pacemaker, Corosync, etcd, PgBouncer, Postgres.
node_logs() {
  local node=$1 lines=${PGCM_LOG_LINES:-40}
  printf '\n==== %s (%s)\n' "$(container "$node")" "$(container_state "$node")"
  if [ "$(container_state "$node")" != running ]; then
    echo "not running: docker start $(container "$node")"
    return
  fi
  in_node "$node" sh -c "
    for unit in pgcm-supervise pgcm-proxy pacemaker corosync etcd pgbouncer; do
      systemctl cat \$unit > /dev/null 2>&1 && [ -e /etc/systemd/system/multi-user.target.wants/\$unit.service ] || continue
      printf '\n---- %s\n' \$unit
      journalctl --quiet --no-pager --output=short-iso --lines=$lines --unit=\$unit
    done
    for file in /var/log/pacemaker/pacemaker.log /var/log/postgresql/postgresql.log; do
      [ -s \$file ] || continue
      printf '\n---- %s\n' \$file
      tail -n $lines \$file
    done" || true
}
