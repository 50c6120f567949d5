#!/usr/bin/env bash
# The rack server under load, beside nginx on the same files in the same run: `benches/rack.sh [PROGRAM]`, as root.
#
# 1. Small objects and a large file: rackstep and nginx in turn, ROUNDS times; the ratio of each round and their median.
# 2. Boot scripts while 200 clients download: how many a second, and the 99th percentile.
# 3. Memory: 1,100 half requests, 200 inventories of 1.9 MB, 10,000 new cards, with those downloads; the peak of all.
# nginx and wrk come out of their Debian packages: nothing is installed.
set -euo pipefail
program=${1:-${CARGO_TARGET_DIR:-target}/release/rackstep}
rounds=${ROUNDS:-5} seconds=${SECONDS_EACH:-5} objects=4000
tools=${XDG_CACHE_HOME:-$HOME/.cache}/rackstep/bench/load-tools
if [ ! -x "$tools/usr/bin/wrk" ]; then
  mkdir -p "$tools"
  (cd "$tools" && apt-get download -q nginx wrk libluajit-5.1-2 && for deb in ./*.deb; do dpkg-deb -x "$deb" .; done)
fi
export LD_LIBRARY_PATH=$tools/usr/lib/x86_64-linux-gnu
work=$(mktemp -d) namespace=rackload$$
cleanup() {
  for name in "$namespace" "$namespace"c{0,1,2,3,4}; do
    for pid in $(ip netns pids "$name" 2>/dev/null); do kill "$pid" 2>/dev/null || true; done
    ip netns delete "$name" 2>/dev/null || true
  done
  rm -rf "$work"
}
trap cleanup EXIT
inside() { ip netns exec "$namespace" "$@"; }

ip netns add "$namespace"
inside ip link set lo up
inside ip link add rack0 type bridge
inside ip address add 10.77.0.1/24 dev rack0
inside ip link set rack0 up
# Clients with addresses of their own: 128 connections are the most from one. The first has the host's card.
for number in 0 1 2 3 4; do
  client=${namespace}c$number
  ip netns add "$client"
  inside ip link add "v$number" master rack0 type veth peer name eth0 address "52:54:00:00:00:0$((number + 1))" netns "$client"
  inside ip link set "v$number" up
  ip -n "$client" address add "10.77.0.2$number/24" dev eth0
  ip -n "$client" link set eth0 up
done
mkdir -p "$work/tree/usr/lib/modules/6.1.0" "$work/nginx"
for name in vmlinuz initramfs.img; do head -c 1000000 /dev/urandom >"$work/tree/usr/lib/modules/6.1.0/$name"; done
ostree --repo="$work/repo" init --mode=archive
ostree --repo="$work/repo" commit --branch=stub/host --tree=dir="$work/tree" >/dev/null
mkdir "$work/repo/load"
head -c 268435456 /dev/urandom >"$work/repo/load/large"
for ((number = 0; number < objects; number++)); do head -c $((500 + number * 4)) "$work/repo/load/large" >"$work/repo/load/$number"; done
cat >"$work/rack.yaml" <<EOF
name: load
network: {interface: rack0, address: 10.77.0.1/24, range: [10.77.0.100, 10.77.0.199]}
profiles: {stub: {ref: stub/host}}
hosts:
  - {name: one, mac: '52:54:00:00:00:01', profile: stub, disk: {serial: D1}}
EOF
cat >"$work/nginx.conf" <<EOF
daemon off; pid $work/nginx/pid; error_log $work/nginx/error.log; worker_processes 2; user root;
events { worker_connections 4096; }
http { access_log off; default_type application/octet-stream; sendfile on; tcp_nodelay on; keepalive_requests 1000000000;
client_body_temp_path $work/nginx/1; proxy_temp_path $work/nginx/2; fastcgi_temp_path $work/nginx/3;
uwsgi_temp_path $work/nginx/4; scgi_temp_path $work/nginx/5;
server { listen 10.77.0.1:8081; location /repo/ { alias $work/repo/; } } }
EOF
ip netns exec "$namespace" "$program" serve --no-dhcp --rack "$work/rack.yaml" --repo "$work/repo" --state "$work/state" >"$work/serve.log" 2>&1 &
server=$!
inside "$tools/usr/sbin/nginx" -c "$work/nginx.conf" -e "$work/nginx/error.log" -p "$work/nginx" &
for port in 8080 8081; do
  inside curl -sf -o /dev/null --retry 60 --retry-connrefused --retry-delay 1 "http://10.77.0.1:$port/repo/config"
done
cat >"$work/small.lua" <<EOF
local number = 0
request = function() number = (number + 7) % $objects; return wrk.format("GET", "/repo/load/" .. number) end
EOF
cat >"$work/boot.lua" <<'EOF'
local number = 0
request = function()
  number = number + 1
  if number % 2 == 0 then return wrk.format("GET", "/boot/ipxe?mac=52-54-00-00-00-01") end
  return wrk.format("GET", string.format("/boot/ipxe?mac=02-00-00-00-%02x-%02x", math.floor(number / 256) % 256, number % 256))
end
EOF
load() { inside "$tools/usr/bin/wrk" "$@"; }
rate() { sed -n 's|^Requests/sec: *||p'; }
bytes() { sed -n 's|^Transfer/sec: *||p' | numfmt --from=iec --suffix=B | tr -d B; }

measure() { # what, unit, how to read, wrk's arguments
  local what=$1 unit=$2 read=$3 round ours theirs ratios=()
  shift 3
  for ((round = 0; round < rounds; round++)); do
    ours=$(load -d "$seconds" "$@" "http://10.77.0.1:8080/repo/load/large" | "$read")
    theirs=$(load -d "$seconds" "$@" "http://10.77.0.1:8081/repo/load/large" | "$read")
    ratios+=("$(awk -v a="$ours" -v b="$theirs" 'BEGIN { printf "%.2f", a / b }')")
    echo "$what: rackstep $ours, nginx $theirs $unit, ratio ${ratios[-1]}"
  done
  printf '%s\n' "${ratios[@]}" | sort -n | awk -v what="$what" '{ all[NR] = $1 } END { print "RATIO " what ": " all[int((NR + 1) / 2)] " x nginx (median of " NR ")" }'
}
measure "small objects" requests/s rate -t 1 -c 8 -s "$work/small.lua"
measure "large file" bytes/s bytes -t 1 -c 4

downloads=()
for number in 1 2 3 4; do
  ip netns exec "${namespace}c$number" "$tools/usr/bin/wrk" -t 1 -c 50 -d $((seconds * 6)) --timeout 60 \
    http://10.77.0.1:8080/repo/load/large >/dev/null &
  downloads+=($!)
done
ip netns exec "${namespace}c0" "$tools/usr/bin/wrk" -t 1 -c 16 -d $((seconds * 2)) --latency -s "$work/boot.lua" http://10.77.0.1:8080 |
  awk '/ 99%/ { p = $2 } /^Requests\/sec/ { r = $2 } END { print "BOOT " r " scripts/s, p99 " p ", with 200 downloads" }'
inside python3 - <<'EOF'
import http.client, json, socket, threading
held = []
for number in range(1100):
    half = socket.socket()
    half.settimeout(3)
    try:
        half.bind((f"127.0.{number // 100}.2", 0)); half.connect(("10.77.0.1", 8080))
        half.send(b"GET /boot/ipxe?mac=52-54-00-00-00-01 HTTP/1.1\r\nHost: x\r\nX: "); held.append(half)
    except OSError: half.close()
body = json.dumps({"uuid": "x" * 1900000, "serial": None, "uefi": False, "memory": 1, "cpus": 1, "disks": []})
def post(number):
    try:
        asked = http.client.HTTPConnection("10.77.0.1", 8080, timeout=45, source_address=(f"127.1.{number}.2", 0))
        asked.request("POST", f"/v1/machines/02-bb-00-00-00-{number:02x}/inventory", body, {"Content-Type": "application/json"})
        asked.getresponse().read()
    except OSError: pass
posts = [threading.Thread(target=post, args=(number,)) for number in range(200)]
for each in posts: each.start()
for each in posts: each.join()
asked = http.client.HTTPConnection("10.77.0.1", 8080, timeout=30, source_address=("127.2.0.2", 0))
for number in range(10000):
    asked.request("GET", f"/boot/ipxe?mac=02-cc-00-00-{number >> 8:02x}-{number & 255:02x}"); asked.getresponse().read()
print(len(held), "half requests, 200 inventories, 10000 cards")
EOF
wait "${downloads[@]}" || true
# `ip netns exec` becomes the program that it runs.
awk '/VmHWM/ { printf "MEMORY peak %d MiB\n", $2 / 1024 }' "/proc/$server/status"
