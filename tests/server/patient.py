"""httpx's calls with the patience of tests, and without the certificates that it reads anew for each of them."""

import ssl
from functools import partial

import httpx

from tests.clocks import PATIENCE

NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

get = partial(httpx.get, timeout=PATIENCE, verify=NO_CERTIFICATES)
post = partial(httpx.post, timeout=PATIENCE, verify=NO_CERTIFICATES)
request = partial(httpx.request, timeout=PATIENCE, verify=NO_CERTIFICATES)
stream = partial(httpx.stream, timeout=PATIENCE, verify=NO_CERTIFICATES)
