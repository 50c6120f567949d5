"""Makes keystone's database and its user; safe to repeat.

Runs as root inside keystone's image: MariaDB knows root by the socket's peer
credentials, so no administrator's password exists anywhere.
"""

import time

import pymysql

SOCKET = "/run/mariadb/mariadb.sock"
PASSWORD = "${secret:keystone-db-password}"
# The pod has passed its probe before we run; this only bridges a restart.
DEADLINE = time.monotonic() + 120


def connect():
    while True:
        try:
            return pymysql.connect(unix_socket=SOCKET, user="root", autocommit=True)
        except pymysql.err.OperationalError:
            if time.monotonic() > DEADLINE:
                raise
            time.sleep(1)


with connect() as connection, connection.cursor() as cursor:
    cursor.execute("CREATE DATABASE IF NOT EXISTS keystone")
    cursor.execute("CREATE USER IF NOT EXISTS 'keystone'@'localhost'")
    cursor.execute("ALTER USER 'keystone'@'localhost' IDENTIFIED BY %s", (PASSWORD,))
    cursor.execute("GRANT ALL PRIVILEGES ON keystone.* TO 'keystone'@'localhost'")
print("keystone's database and user are there")
