"""What differs from Debian's settings."""

ALLOWED_HOSTS = ["*"]
SECRET_KEY = "${secret:horizon-secret}"
OPENSTACK_HOST = "127.0.0.1"
OPENSTACK_KEYSTONE_URL = "http://127.0.0.1:5000/v3"
OPENSTACK_ENDPOINT_TYPE = "internalURL"
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
        "LOCATION": "127.0.0.1:11211",
    }
}
SESSION_ENGINE = "django.contrib.sessions.backends.cache"
OPENSTACK_KEYSTONE_MULTIDOMAIN_SUPPORT = False
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
TIME_ZONE = "UTC"
