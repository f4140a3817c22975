"""A double of GitHub's cache service for Actions (version 2, Twirp in JSON) and of the store of blobs that it signs addresses of.

Entries are found by key and version, are written once, and can be had only after their upload was finished with the right size.
Prints its port. Every request that the real services would refuse is answered with an error, and counted at /refused.
"""
import http.server
import json
import secrets
import sys

TOKEN = sys.argv[1]
entries, uploads, refused = {}, {}, []


class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def say(self, status, value):
        if status in (400, 401, 403):
            refused.append(f"{self.path}: {value}")
        self.answer(status, json.dumps(value).encode())

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def address(self, kind, name):
        host, port = self.server.server_address
        return f"http://{host}:{port}/{kind}/{name}?sig=s%2Fecret"

    def do_POST(self):
        body = self.body()
        service = "/twirp/github.actions.results.api.v1.CacheService/"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.say(401, {"code": "unauthenticated", "msg": "bad token"})
        if not self.path.startswith(service) or self.headers.get("Content-Type") != "application/json":
            return self.say(400, {"code": "bad_route", "msg": self.path})
        request = json.loads(body)
        key, version = request["key"], request["version"]
        if len(key) > 512 or "," in key or len(version) != 64:
            return self.say(400, {"code": "invalid_argument", "msg": "key or version"})
        procedure = self.path[len(service):]
        if procedure == "CreateCacheEntry":
            if (key, version) in entries:
                return self.say(409, {"code": "already_exists", "msg": "cache entry with the same key exists"})
            name = secrets.token_hex(8)
            uploads[name] = None
            entries[key, version] = {"name": name, "done": False}
            return self.say(200, {"ok": True, "signed_upload_url": self.address("upload", name)})
        if procedure == "FinalizeCacheEntryUpload":
            entry = entries.get((key, version))
            sent = entry and uploads[entry["name"]]
            if sent is None or len(sent) != int(request["size_bytes"]):
                return self.say(400, {"code": "failed_precondition", "msg": "size"})
            entry["done"] = True
            return self.say(200, {"ok": True, "entry_id": "1"})
        if procedure == "GetCacheEntryDownloadURL":
            # Whatever begins with the key is found, as the real service does with its restore keys.
            for (known, of), entry in sorted(entries.items()):
                if entry["done"] and of == version and known.startswith(key):
                    url = self.address("download", entry["name"])
                    return self.say(200, {"ok": True, "signed_download_url": url, "matched_key": known})
            return self.say(200, {"ok": False, "signed_download_url": "", "matched_key": ""})
        return self.say(400, {"code": "bad_route", "msg": procedure})

    def do_PUT(self):
        body = self.body()
        name = self.path.removeprefix("/upload/").split("?")[0]
        signed = self.path.endswith("?sig=s%2Fecret") and "Authorization" not in self.headers
        if not signed or self.headers.get("x-ms-blob-type") != "BlockBlob" or name not in uploads:
            return self.say(403, {"msg": "not signed, or no block blob"})
        uploads[name] = body
        self.answer(201, b"")

    def do_GET(self):
        if self.path == "/refused":
            return self.answer(200, "\n".join(refused).encode(), "text/plain")
        name = self.path.removeprefix("/download/").split("?")[0]
        if not self.path.endswith("?sig=s%2Fecret") or "Authorization" in self.headers or uploads.get(name) is None:
            return self.say(403, {"msg": "not signed"})
        self.answer(200, uploads[name], "application/octet-stream")


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
print(server.server_address[1], flush=True)
server.serve_forever()
