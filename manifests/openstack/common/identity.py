"""Makes a service's user, catalogue entry and endpoints in keystone; safe to repeat.

One process and the standard library: the command line client takes seconds for
each of a dozen calls. What to make is in identity.json of the configuration.
An endpoint that has another URL than the one wanted gets the wanted one.
"""

import json
import time
import urllib.error
import urllib.parse
import urllib.request

KEYSTONE = "http://127.0.0.1:5000/v3"
WANTED = "/var/lib/kolla/config_files/identity.json"
REGION = "RegionOne"
DOMAIN = "default"
DEADLINE = time.monotonic() + 120


def call(method, path, body=None, token=None):
    headers = {"Content-Type": "application/json"}
    if token:
        headers["X-Auth-Token"] = token
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(KEYSTONE + path, method=method, data=data, headers=headers)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                content = answer.read()
                return answer.headers, json.loads(content) if content else None
        except urllib.error.HTTPError as error:
            if error.code < 500 or time.monotonic() > DEADLINE:
                raise
        except urllib.error.URLError:
            if time.monotonic() > DEADLINE:
                raise
        time.sleep(1)


def log_in(password):
    identity = {
        "methods": ["password"],
        "password": {"user": {"name": "admin", "domain": {"id": DOMAIN}, "password": password}},
    }
    scope = {"project": {"name": "admin", "domain": {"id": DOMAIN}}}
    headers, _ = call("POST", "/auth/tokens", {"auth": {"identity": identity, "scope": scope}})
    return headers["X-Subject-Token"]


with open(WANTED, encoding="utf-8") as file:
    wanted = json.load(file)
token = log_in(wanted["admin_password"])


def ensure(kind, match, body):
    query = urllib.parse.urlencode(match)
    _, found = call("GET", f"/{kind}s?{query}", token=token)
    if found[kind + "s"]:
        return found[kind + "s"][0]
    _, made = call("POST", f"/{kind}s", {kind: body}, token)
    return made[kind]


def ensure_user(name, password):
    in_domain = {"domain_id": DOMAIN}
    project = ensure("project", {"name": "service", **in_domain}, {"name": "service", **in_domain})
    user = ensure("user", {"name": name, **in_domain}, {"name": name, "password": password, **in_domain})
    for role in ("admin", "service"):
        role = ensure("role", {"name": role}, {"name": role})
        call("PUT", f"/projects/{project['id']}/users/{user['id']}/roles/{role['id']}", token=token)


def ensure_endpoint(service, interface, url):
    match = {"service_id": service, "interface": interface}
    endpoint = ensure("endpoint", match, {**match, "url": url, "region_id": REGION})
    if endpoint["url"] != url:
        call("PATCH", f"/endpoints/{endpoint['id']}", {"endpoint": {"url": url}}, token)


if "user" in wanted:
    ensure_user(wanted["user"], wanted["password"])
for entry in wanted["services"]:
    named = {"name": entry["name"], "type": entry["type"]}
    service = ensure("service", named, named)["id"]
    for interface in entry.get("interfaces", ["public", "internal", "admin"]):
        ensure_endpoint(service, interface, entry["url"])
print("in the catalogue:", *(entry["name"] for entry in wanted["services"]))
