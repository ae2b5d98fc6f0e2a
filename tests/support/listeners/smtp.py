"""A mail server that records its mails: smtp.py DIR none|starttls|tls CERTIFICATE KEY.

DIR/port gets its port, DIR/mails a JSON line for every mail. reject@ is refused, later@ is
deferred the first time. With TLS it takes mail only from `backup`, whose password is `s3cret`.
"""

import asyncio
import collections
import email
import email.policy
import json
import os
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

DIR, SECURITY, CERTIFICATE, KEY = sys.argv[1:]
seen = collections.Counter()


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        seen[address] += 1
        if address.startswith("reject@"):
            return "550 5.1.1 nobody of this name"
        if address.startswith("later@") and seen[address] == 1:
            return "451 4.3.0 come again"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        line = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "headers": {key.lower(): str(value) for key, value in mail.items()},
            "text": mail.get_content(),
            "user": session.auth_data,
            "is_encrypted": session.ssl is not None or SECURITY == "tls",
        }
        with open(DIR + "/mails", "a") as mails:
            mails.write(json.dumps(line) + "\n")
        return "250 OK"


def authenticate(server, session, envelope, mechanism, data):
    if (data.login, data.password) == (b"backup", b"s3cret"):
        return AuthResult(success=True, auth_data=data.login.decode())
    return AuthResult(success=False, handled=False)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(CERTIFICATE, KEY)


def session():
    options = {"hostname": "localhost", "enable_SMTPUTF8": True}
    if SECURITY == "starttls":
        options.update(tls_context=context, require_starttls=True)
    if SECURITY != "none":
        # If TLS starts with the first byte, aiosmtpd does not detect it.
        options.update(authenticator=authenticate, auth_required=True, auth_require_tls=SECURITY == "starttls")
    return SMTP(Handler(), **options)


async def main():
    implicit = context if SECURITY == "tls" else None
    server = await asyncio.get_running_loop().create_server(session, "127.0.0.1", 0, ssl=implicit)
    with open(DIR + "/port.new", "w") as port:
        port.write(str(server.sockets[0].getsockname()[1]))
    os.rename(DIR + "/port.new", DIR + "/port")
    await server.serve_forever()


asyncio.run(main())
