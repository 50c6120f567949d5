"""Makes a service's databases and its user; safe to repeat.

Runs as root inside the service's image: MariaDB knows root by the socket's peer
credentials, so no administrator's password exists anywhere. What to make is in
database.json of the service's configuration.
"""

import json
import time

import pymysql

SOCKET = "/run/mariadb/mariadb.sock"
WANTED = "/var/lib/kolla/config_files/database.json"
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


with open(WANTED, encoding="utf-8") as file:
    wanted = json.load(file)
user = wanted["user"]
with connect() as connection, connection.cursor() as cursor:
    cursor.execute("CREATE USER IF NOT EXISTS %s@'localhost'", (user,))
    cursor.execute("ALTER USER %s@'localhost' IDENTIFIED BY %s", (user, wanted["password"]))
    for name in wanted["databases"]:
        # Names come from the release, not from a person; an identifier cannot be a parameter.
        cursor.execute(f"CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb3")
        cursor.execute(f"GRANT ALL PRIVILEGES ON `{name}`.* TO %s@'localhost'", (user,))
print("databases and user are there:", user, *wanted["databases"])
