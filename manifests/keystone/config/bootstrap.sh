#!/bin/sh
# Makes the administrator, its role and keystone's own endpoints; safe to repeat.
# Starts as root to read the password, which the service's user must not.
set -eu
OS_BOOTSTRAP_PASSWORD=$(cat /var/lib/kolla/config_files/admin-password)
export OS_BOOTSTRAP_PASSWORD
exec setpriv --reuid keystone --regid keystone --init-groups keystone-manage bootstrap \
    --bootstrap-username admin --bootstrap-project-name admin --bootstrap-role-name admin \
    --bootstrap-service-name keystone --bootstrap-region-id RegionOne \
    --bootstrap-admin-url "http://${host:address}:5000/v3/" \
    --bootstrap-internal-url "http://${host:address}:5000/v3/" \
    --bootstrap-public-url "http://${host:address}:5000/v3/"
