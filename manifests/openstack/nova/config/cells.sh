#!/bin/sh
# The cell of servers that never got a host, and the one cell of this site; safe to repeat.
set -eu
mkdir -p /var/lib/nova/tmp
cells=$(nova-manage cell_v2 list_cells)
has_cell() { printf '%s\n' "$cells" | grep -q "$1"; }
has_cell cell0 || nova-manage cell_v2 map_cell0 --database_connection \
    'mysql+pymysql://nova:${secret:nova-db-password}@localhost/nova_cell0?unix_socket=/run/mariadb/mariadb.sock&charset=utf8mb4'
has_cell cell1 || nova-manage cell_v2 create_cell --name=cell1
