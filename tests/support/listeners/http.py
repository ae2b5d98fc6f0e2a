"""A web server that records its requests: http.py DIR [CERTIFICATE KEY].

DIR/port gets its port, DIR/requests a JSON line for every request. The path selects the answer:
/status/N with N, /flaky/N with 503 the first N times, /slow not for a minute, /redirect with
another place, /echo with 404 and the path; /new-zabbix like the API of Zabbix 7, and /late-zabbix
like one that never puts a maintenance in force.
"""

import collections
import json
import os
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DIR = sys.argv[1]
seen = collections.Counter()


maintenances = {}


def maintenance(method, params):
    if method == "maintenance.get":
        wanted = params["filter"]["name"]
        return [one for one in maintenances.values() if one["name"] in wanted]
    if method == "maintenance.create":
        name = params["name"]
        maintenances[name] = {"maintenanceid": str(len(maintenances) + 9), "name": name}
    else:
        name = next(one["name"] for one in maintenances.values() if one["maintenanceid"] == params["maintenanceid"])
    maintenances[name]["active_till"] = str(params["active_till"])
    return {"maintenanceids": [maintenances[name]["maintenanceid"]]}


def new_zabbix(request, authorization, awake):
    method, params = request["method"], request["params"]
    if "auth" in request:
        return {"error": {"code": -32600, "message": "Invalid request.", "data": 'unexpected parameter "auth".'}}
    if method == "apiinfo.version":
        # The real API refuses a token here.
        is_ours = authorization is None or authorization.startswith("Basic ")
        return {"result": "7.2.1"} if is_ours else {"error": {"code": -32602, "message": "token"}}
    if authorization != "Bearer t0ken":
        return {"error": {"code": -32602, "message": "Invalid params.", "data": "Not authorized."}}
    if method.startswith("maintenance."):
        return {"result": maintenance(method, params)}
    return {"result": awake if params.get("countOutput") else [{"hostid": "7", "host": "git01"}]}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length).decode()
        if len(body.encode()) < length:
            return  # The client was killed while it sent the request.
        line = {"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}, "body": body}
        with open(DIR + "/requests", "a") as requests:
            requests.write(json.dumps(line) + "\n")
        path = self.path.split("?")[0]
        seen[path] += 1
        parts = path.split("/")
        if parts[1] == "status":
            self.answer(int(parts[2]))
        elif parts[1] == "flaky":
            self.answer(503 if seen[path] <= int(parts[2]) else 200)
        elif parts[1] == "slow":
            time.sleep(60)
        elif parts[1] == "redirect":
            self.answer(302, location="/elsewhere")
        elif parts[1] == "echo":
            self.answer(404, "there is no " + self.path)
        elif parts[1] in ("new-zabbix", "late-zabbix"):
            awake = "1" if parts[1] == "late-zabbix" else "0"
            result = new_zabbix(json.loads(body), self.headers.get("Authorization"), awake)
            self.answer(200, json.dumps({"jsonrpc": "2.0", "id": 1, **result}))
        else:
            self.answer(200, "ok")

    def answer(self, status, text="", location=None):
        body = text.encode()
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
if len(sys.argv) > 2:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
    server.socket = context.wrap_socket(server.socket, server_side=True)
with open(DIR + "/port.new", "w") as port:
    port.write(str(server.server_address[1]))
os.rename(DIR + "/port.new", DIR + "/port")
server.serve_forever()
