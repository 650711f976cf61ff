# A planned failover under load, told from the clients' side.
# shellcheck shell=bash

clients=8
load_s=20
failover_after_s=6

run_load() {
  in_node app01 env PGPASSWORD=app sh -c "
    rm -rf /tmp/demo && mkdir /tmp/demo && cd /tmp/demo
    echo \"INSERT INTO playground_demo (client) VALUES (:client_id);\" > insert.sql
    exec \"\$(echo /usr/lib/postgresql/*/bin/pgbench)\" -h 127.0.0.1 -p 6432 -U app -n -f insert.sql \
      -c $clients -j 2 -T $load_s --log --log-prefix=commits app" > "$work_dir/pgbench" 2>&1
}

# Prints commits per second, the longest wait and the count, from pgbench's transaction logs:
# client, number, latency in us, script, epoch s, us.
print_waits() {
  in_node app01 sh -c 'cat /tmp/demo/commits.*' | awk -v began="$1" -v ended="$2" '
    { second[$5]++; total++; if ($3 > worst) worst = $3
      if (!first || $5 < first) first = $5
      if ($5 > last) last = $5 }
    END {
      print "  second   commits"
      for (s = first; s <= last; s++) {
        printf "  %6d   %7d %s\n", s - first, second[s], (s >= began && s <= ended) ? "  <- failover" : ""
      }
      printf "\n  %d commits, longest wait %.0f ms\n", total, worst / 1000
    }'
}

demo() {
  local began ended move=0 load=0 rows pid
  is_healthy || fail "the cluster is not healthy: $(head -n 1 "$work_dir/health"); try: ${invocation}up"
  in_node app01 env PGPASSWORD=app psql -X -q -h 127.0.0.1 -p 6432 -U app app \
    -c 'DROP TABLE IF EXISTS playground_demo' -c 'CREATE TABLE playground_demo (client int NOT NULL)' 2> /dev/null
  say "$clients clients commit single rows through app01:6432 for $load_s s"
  run_load &
  pid=$!
  sleep "$failover_after_s"
  say "pgcm failover"
  began=$(date +%s)
  in_node app01 pgcm failover || move=$?
  ended=$(date +%s)
  wait "$pid" || load=$?
  echo
  print_waits "$began" "$ended"
  rows=$(in_node app01 env PGPASSWORD=app psql -X -A -t -h 127.0.0.1 -p 6432 -U app app -c 'SELECT count(*) FROM playground_demo')
  printf '  %s rows in the table\n  errors: %s\n' "$rows" \
    "$(grep -iE 'error|aborted' "$work_dir/pgbench" | sort | uniq -c | sort -rn | head -n 5 | sed 's/^ *//' || echo none)"
  [ "$move" -eq 0 ] || fail "the failover ended with exit code $move"
  [ "$load" -eq 0 ] || fail "pgbench ended with exit code $load: $(tail -n 1 "$work_dir/pgbench")"
}
