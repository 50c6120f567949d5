#!/bin/sh
# A certificate of this site's own authority, where nobody put another one into the volume (proxy.pem: chain and key).
# Clients are given ca.pem, which is no secret; ca.key stays here.
set -eu
umask 077
cd /var/lib/haproxy/tls
[ ! -f proxy.pem ] || exit 0
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj '/CN=rackstep site authority' \
    -keyout ca.key -out ca.pem
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=${host:name}' -keyout proxy.key -out proxy.csr
printf 'subjectAltName=IP:%s,DNS:%s\n' '${host:address}' '${host:name}' > extensions
openssl x509 -req -in proxy.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 825 -extfile extensions -out proxy.crt
cat proxy.crt proxy.key > proxy.pem.new
mv proxy.pem.new proxy.pem
rm -f proxy.csr extensions
