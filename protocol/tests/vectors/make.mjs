// Makes the vectors of the providers below with the providers' own libraries: each request is signed, some are tampered
// with, and what the library says of each is what stands in `expect`.
//
//   npm i twilio square @hubspot/api-client @sendgrid/eventwebhook discord-interactions @adyen/api-library \
//     @contentful/node-apps-toolkit plivo braintree @paddle/paddle-node-sdk @line/bot-sdk razorpay @sanity/webhook \
//     @workos-inc/node @mux/mux-node pusher webflow-api gocardless-nodejs atlassian-jwt sns-validator \
//     google-auth-library jose chargebee @notionhq/client @dropbox/sign coinbase-commerce-node hook0-client nylas@6
//   pip install paypalrestsdk 'pyOpenSSL<22'
//   node make.mjs DIRECTORY
import { execFileSync } from "node:child_process";
import { createHash, createHmac, createPrivateKey, generateKeyPairSync, sign } from "node:crypto";
import https from "node:https";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";

const require = createRequire(process.cwd() + "/");
const NOW = 1767225600;
Date.now = () => NOW * 1000;
const RealDate = Date;
globalThis.Date = class extends RealDate {
  constructor(...given) {
    super(...(given.length ? given : [NOW * 1000]));
  }
};
const version = (name) => {
  if (!name.startsWith("PyPI:")) return `npm:${name}@${JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version}`;
  const code = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))";
  return `${name}@${execFileSync("python3", ["-c", code, name.slice(5)]).toString().trim()}`;
};
const hmac = (algorithm, key, text, encoding) => createHmac(algorithm, key).update(text).digest(encoding);
const BODY = '{"id":"evt_1","type":"order.paid","text":"Grüße 🚀","amount":10.50}';
const FORM = "MessageSid=SM1&MessageStatus=sent&Body=Hi+%26+bye&From=%2B4915112345678&Empty=";
const form = (text) => Object.fromEntries(new URLSearchParams(text));

const files = {};
// `oracle(request)` says whether the library takes a request; what it throws means no.
async function provider(id, library, secret, cases, oracle, more = {}) {
  const vectors = [];
  for (const [name, change] of Object.entries(cases)) {
    const request = { method: "POST", url: `https://t-7f3a.relay.example/hooks/${id}?team=a%20b`, headers: {}, body: BODY };
    await change(request);
    let valid;
    try {
      valid = (await oracle(request)) !== false;
    } catch (error) {
      valid = false;
      if (process.env.DEBUG) console.error(id, name, error);
    }
    const good = !/changed|wrong|without|stale|old-url|other/.test(name);
    if (valid !== good) console.error(`${id}/${name}: the library says ${valid}`);
    const reason = valid ? "ok" : /stale/.test(name) ? "stale_timestamp" : /without/.test(name) ? "missing_signature" : "bad_signature";
    vectors.push({
      id: `${id}/${name}`, provider: id, secret, ...more, method: request.method, url: request.url,
      headers: Object.entries(request.headers), body_b64: Buffer.from(request.body).toString("base64"), now: NOW,
      expect: { valid, reason, event_id: request.event_id, event_type: request.event_type },
      oracle_results: { [version(library)]: valid },
    });
  }
  files[id] = { format: "webhook-vectors/1", provider: id, oracle_kind: "sdk", oracles: [version(library)], vectors, ambiguous: [] };
}
// The four cases that every scheme over a body has.
const usual = (signed, header) => ({
  basic: (r) => signed(r),
  "body-changed": (r) => { signed(r); r.body = r.body.replace("10.50", "10.5"); },
  "newline-changed": (r) => { signed(r); r.body += "\n"; },
  "wrong-secret": (r) => signed(r, "another"),
  ...(header && { "without-header": (r) => { signed(r); delete r.headers[header]; } }),
});
const attempt = async (name, work) => {
  try {
    await work();
  } catch (error) {
    console.error(name, error);
  }
};

await attempt("twilio", async () => {
  const twilio = require("twilio");
  const webhooks = require("twilio/lib/webhooks/webhooks");
  const secret = "12345678901234567890123456789012";
  const typed = (r) => { r.headers["Content-Type"] = "application/x-www-form-urlencoded; charset=utf-8"; r.body = FORM; r.event_id = "SM1-sent"; r.event_type = "sent"; };
  const signed = (r, other) => { typed(r); r.headers["X-Twilio-Signature"] = webhooks.getExpectedTwilioSignature(other ?? secret, r.url, form(r.body)); };
  const json = (r) => {
    r.headers["Content-Type"] = "application/json";
    r.url = "https://t-7f3a.relay.example/hooks/twilio?bodySHA256=" + createHash("sha256").update(r.body).digest("hex");
    r.headers["X-Twilio-Signature"] = webhooks.getExpectedTwilioSignature(secret, r.url, {});
  };
  await provider("twilio", "twilio", secret, {
    form: (r) => signed(r),
    "default-port-in-what-is-signed": (r) => { typed(r); r.headers["X-Twilio-Signature"] = webhooks.getExpectedTwilioSignature(secret, r.url.replace("example/", "example:443/"), form(r.body)); },
    get: (r) => { r.method = "GET"; r.body = ""; r.headers["X-Twilio-Signature"] = webhooks.getExpectedTwilioSignature(secret, r.url, {}); },
    json,
    "json-body-changed": (r) => { json(r); r.body += " "; },
    "field-changed": (r) => { signed(r); r.body = r.body.replace("bye", "buy"); },
    "old-url": (r) => { signed(r); r.url = r.url.replace("t-7f3a", "t-0000"); },
    "wrong-secret": (r) => signed(r, "another"),
    "without-header": (r) => { typed(r); },
  }, (r) => {
    const header = r.headers["X-Twilio-Signature"];
    if (r.url.includes("bodySHA256")) return twilio.validateRequestWithBody(secret, header, r.url, r.body);
    return twilio.validateRequest(secret, header, r.url, r.body ? form(r.body) : {});
  });
});

await attempt("square", async () => {
  const { WebhooksHelper } = require("square");
  const secret = "asdf1234";
  const signed = (r, other) => { r.headers["x-square-hmacsha256-signature"] = hmac("sha256", other ?? secret, r.url + r.body, "base64"); r.body.includes("evt") && (r.event_type = "order.paid"); };
  await provider("square", "square", secret, {
    ...usual(signed, "x-square-hmacsha256-signature"),
    "old-url": (r) => { signed(r); r.url += "/"; },
  }, (r) => WebhooksHelper.verifySignature({ requestBody: r.body, signatureHeader: r.headers["x-square-hmacsha256-signature"], signatureKey: secret, notificationUrl: r.url }));
});

await attempt("hubspot", async () => {
  const { Signature } = require("@hubspot/api-client");
  const secret = "yyyyyyyy-yyyy-yyyy-yyyy-yyyyyyyyyyyy";
  const body = '[{"eventId":1,"subscriptionType":"contact.creation","objectId":123}]';
  const sign3 = (r, other, at = NOW * 1000 - 2000) => {
    r.body = body; r.event_id = "1"; r.event_type = "contact.creation";
    r.headers["X-HubSpot-Request-Timestamp"] = String(at);
    r.headers["X-HubSpot-Signature-v3"] = Signature.getSignature(r.method, "v3", { clientSecret: other ?? secret, requestBody: r.body, url: r.url, timestamp: at });
  };
  const sign = (v) => (r) => {
    r.body = body; r.event_id = "1"; r.event_type = "contact.creation";
    r.headers["X-HubSpot-Signature-Version"] = v;
    r.headers["X-HubSpot-Signature"] = Signature.getSignature(r.method, v, { clientSecret: secret, requestBody: r.body, url: r.url });
  };
  await provider("hubspot", "@hubspot/api-client", secret, {
    v3: (r) => sign3(r), v2: sign("v2"), v1: sign("v1"),
    "v3-body-changed": (r) => { sign3(r); r.body += " "; },
    "v2-body-changed": (r) => { sign("v2")(r); r.body += " "; },
    "v1-body-changed": (r) => { sign("v1")(r); r.body += " "; },
    "old-url": (r) => { sign3(r); r.url = r.url.replace("t-7f3a", "t-0000"); },
    "wrong-secret": (r) => sign3(r, "another"),
    "stale-301s": (r) => sign3(r, undefined, (NOW - 301) * 1000),
  }, (r) => {
    const v3 = r.headers["X-HubSpot-Signature-v3"];
    return Signature.isValid({
      signature: v3 ?? r.headers["X-HubSpot-Signature"], method: r.method, clientSecret: secret, requestBody: r.body, url: r.url,
      signatureVersion: v3 ? "v3" : r.headers["X-HubSpot-Signature-Version"], timestamp: Number(r.headers["X-HubSpot-Request-Timestamp"]),
    });
  });
});

await attempt("sendgrid", async () => {
  const { EventWebhook } = require("@sendgrid/eventwebhook");
  const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const other = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey;
  const secret = publicKey.export({ type: "spki", format: "der" }).toString("base64");
  const signed = (r, wrong) => {
    r.body = '[{"email":"a@b.c","event":"processed","sg_event_id":"ZXZ0MQ"}]\r\n'; r.event_id = "ZXZ0MQ"; r.event_type = "processed";
    const at = String(NOW - 3);
    r.headers["X-Twilio-Email-Event-Webhook-Timestamp"] = at;
    r.headers["X-Twilio-Email-Event-Webhook-Signature"] = sign("sha256", Buffer.from(at + r.body), wrong ? other : privateKey).toString("base64");
  };
  await provider("sendgrid", "@sendgrid/eventwebhook", secret, {
    basic: (r) => signed(r), "wrong-key": (r) => signed(r, true),
    "newline-changed": (r) => { signed(r); r.body = r.body.trimEnd(); },
    "timestamp-changed": (r) => { signed(r); r.headers["X-Twilio-Email-Event-Webhook-Timestamp"] = String(NOW - 2); },
  }, (r) => {
    const webhook = new EventWebhook();
    return webhook.verifySignature(webhook.convertPublicKeyToECDSA(secret), r.body, r.headers["X-Twilio-Email-Event-Webhook-Signature"], r.headers["X-Twilio-Email-Event-Webhook-Timestamp"]);
  });
});

await attempt("discord", async () => {
  const { verifyKey } = require("discord-interactions");
  const { privateKey, publicKey } = generateKeyPairSync("ed25519");
  const secret = publicKey.export({ type: "spki", format: "der" }).subarray(-32).toString("hex");
  const signed = (r) => {
    r.body = '{"id":"846462639134605312","type":2,"data":{"name":"blep"}}'; r.event_id = "846462639134605312"; r.event_type = "2";
    r.headers["X-Signature-Timestamp"] = String(NOW - 1);
    r.headers["X-Signature-Ed25519"] = sign(null, Buffer.from(NOW - 1 + r.body), privateKey).toString("hex");
  };
  await provider("discord", "discord-interactions", secret, {
    basic: signed,
    "body-changed": (r) => { signed(r); r.body = r.body.replace("blep", "blop"); },
    "timestamp-changed": (r) => { signed(r); r.headers["X-Signature-Timestamp"] = String(NOW); },
  }, (r) => verifyKey(r.body, r.headers["X-Signature-Ed25519"], r.headers["X-Signature-Timestamp"], secret));
});

await attempt("adyen", async () => {
  const { hmacValidator: Validator } = require("@adyen/api-library");
  const validator = new Validator();
  const secret = "DFB1EB5485895CFA84146406857104ABB4CBCABDC8AAF103A624C8F6A3EAAB00";
  const item = (change) => ({
    additionalData: {}, pspReference: "7914073381342284", merchantAccountCode: "TestMerchant", merchantReference: "Test:Payment\\1",
    amount: { value: 1130, currency: "EUR" }, eventCode: "AUTHORISATION", success: "true", ...change,
  });
  const standard = (r, other, change) => {
    const notification = item(change);
    notification.additionalData.hmacSignature = validator.calculateHmac(notification, other ?? secret);
    r.body = JSON.stringify({ live: "false", notificationItems: [{ NotificationRequestItem: notification }] });
    r.event_id = "7914073381342284-AUTHORISATION-true"; r.event_type = "AUTHORISATION";
  };
  const platform = (r) => { r.headers = { HmacSignature: validator.calculateHmac(r.body, secret), Protocol: "HmacSHA256" }; r.event_type = "order.paid"; };
  await provider("adyen", "@adyen/api-library", secret, {
    standard: (r) => standard(r),
    "standard-with-original": (r) => standard(r, undefined, { originalReference: "881" }),
    "amount-changed": (r) => { standard(r); r.body = r.body.replace("1130", "1131"); },
    "wrong-secret": (r) => standard(r, "00".repeat(32)),
    platform,
    "platform-body-changed": (r) => { platform(r); r.body += " "; },
  }, (r) => r.headers.HmacSignature
    ? validator.validateHMACSignature(secret, r.headers.HmacSignature, r.body)
    : validator.validateHMAC(JSON.parse(r.body).notificationItems[0].NotificationRequestItem, secret));
});

await attempt("contentful", async () => {
  const { signRequest, verifyRequest } = require("@contentful/node-apps-toolkit");
  const secret = "0123456789abcdefghijABCDEFGHIJ0123456789abcdefghijABCDEFGHIJ0123";
  const canonical = (r) => ({ method: r.method, path: new URL(r.url).pathname + new URL(r.url).search, headers: r.headers, body: r.body });
  const signed = (r, other, at = NOW * 1000 - 1000) => {
    r.url = "https://t-7f3a.relay.example/hooks/contentful";
    r.headers = { "x-contentful-topic": "ContentManagement.Entry.publish" };
    r.event_type = "ContentManagement.Entry.publish";
    Object.assign(r.headers, signRequest(other ?? secret, canonical(r), at));
  };
  await provider("contentful", "@contentful/node-apps-toolkit", secret, {
    basic: (r) => signed(r),
    "body-changed": (r) => { signed(r); r.body += " "; },
    "topic-changed": (r) => { signed(r); r.headers["x-contentful-topic"] = "ContentManagement.Entry.delete"; },
    "other-path": (r) => { signed(r); r.url += "/b"; },
    "wrong-secret": (r) => signed(r, secret.replace("0", "1")),
    "stale-301s": (r) => { signed(r, undefined, (NOW - 301) * 1000); },
  }, (r) => verifyRequest(secret, canonical(r)));
});

await attempt("plivo", async () => {
  const plivo = require("plivo");
  const secret = "my_auth_token";
  const body = "From=12345&To=67890&CallUUID=c1&Event=Ring";
  const params = Object.entries(form(body)).sort().flat().join("");
  const base = "https://t-7f3a.relay.example/hooks/plivo";
  const signed = (query, text) => (r, other) => {
    r.url = base + query; r.headers["X-Plivo-Signature-V3-Nonce"] = "n123";
    if (r.method === "POST") { r.body = body; r.headers["Content-Type"] = "application/x-www-form-urlencoded"; r.event_id = "c1-Ring"; r.event_type = "Ring"; } else r.body = "";
    r.headers["X-Plivo-Signature-V3"] = "AAAA," + hmac("sha256", typeof other === "string" ? other : secret, base + text + ".n123", "base64");
  };
  const plain = signed("", "?" + params);
  await provider("plivo", "plivo", secret, {
    basic: plain,
    "with-query": signed("?b=2&a=1%202", "?a=1 2&b=2." + params),
    get: (r) => { r.method = "GET"; signed("?b=2&a=1", "?a=1&b=2")(r); },
    "field-changed": (r) => { plain(r); r.body = r.body.replace("12345", "12346"); },
    "nonce-changed": (r) => { plain(r); r.headers["X-Plivo-Signature-V3-Nonce"] = "n124"; },
    "wrong-secret": (r) => plain(r, "another"),
  }, (r) => plivo.validateV3Signature(r.method, r.url, r.headers["X-Plivo-Signature-V3-Nonce"], secret, r.headers["X-Plivo-Signature-V3"], r.body ? form(r.body) : {}));
});

await attempt("braintree", async () => {
  const braintree = require("braintree");
  const gateway = new braintree.BraintreeGateway({ environment: braintree.Environment.Sandbox, merchantId: "m", publicKey: "public_1", privateKey: "private_1" });
  const signed = async (r) => {
    const sample = await gateway.webhookTesting.sampleNotification("subscription_went_past_due", "my_id");
    r.headers["Content-Type"] = "application/x-www-form-urlencoded";
    r.body = new URLSearchParams({ bt_signature: sample.bt_signature, bt_payload: sample.bt_payload.trim() }).toString();
  };
  await provider("braintree", "braintree", "private_1", {
    "payload-changed": async (r) => { await signed(r); r.body = r.body.replace("bt_payload=P", "bt_payload=Q").replace("bt_payload=I", "bt_payload=J"); },
    basic: async (r) => {
      await signed(r);
      const payload = form(r.body).bt_payload;
      const key = createHash("sha1").update("private_1").digest();
      r.body = new URLSearchParams({ bt_signature: "public_0|00&public_1|" + hmac("sha1", key, payload, "hex"), bt_payload: payload }).toString();
    },
  }, (r) => gateway.webhookNotification.parse(form(r.body).bt_signature, form(r.body).bt_payload), { config: { public_key: "public_1" } });
});

await attempt("paddle", async () => {
  const { Paddle, Webhooks } = require("@paddle/paddle-node-sdk");
  const paddle = new Paddle("key");
  const secret = "pdl_ntfset_01hsdn";
  const signed = (r, other, at = NOW - 2) => { r.body = '{"event_id":"evt_1","event_type":"transaction.completed","data":{}}'; r.event_id = "evt_1"; r.event_type = "transaction.completed"; r.headers["Paddle-Signature"] = `ts=${at};h1=${hmac("sha256", other ?? secret, at + ":" + r.body, "hex")}`; };
  await provider("paddle", "@paddle/paddle-node-sdk", secret, {
    basic: (r) => signed(r),
    "body-changed": (r) => { signed(r); r.body += " "; },
    "timestamp-changed": (r) => { signed(r); r.headers["Paddle-Signature"] = r.headers["Paddle-Signature"].replace(`ts=${NOW - 2}`, `ts=${NOW - 1}`); },
    "wrong-secret": (r) => signed(r, "another"),
  }, (r) => paddle.webhooks.isSignatureValid(r.body, secret, r.headers["Paddle-Signature"]));
});

await attempt("line", async () => {
  const { validateSignature } = require("@line/bot-sdk");
  const secret = "8c570fa6dd201bb328f1c1eac23a96d8";
  const signed = (r, other) => { r.headers["x-line-signature"] = hmac("sha256", other ?? secret, r.body, "base64"); };
  await provider("line", "@line/bot-sdk", secret, usual(signed, "x-line-signature"), (r) => validateSignature(r.body, secret, r.headers["x-line-signature"]));
});

await attempt("razorpay", async () => {
  const Razorpay = require("razorpay");
  const signed = (r, other) => { r.headers["X-Razorpay-Signature"] = hmac("sha256", other ?? "123456", r.body, "hex"); };
  await provider("razorpay", "razorpay", "123456", usual(signed, "X-Razorpay-Signature"), (r) => Razorpay.validateWebhookSignature(r.body, r.headers["X-Razorpay-Signature"], "123456"));
});

await attempt("sanity", async () => {
  const { isValidSignature, encodeSignatureHeader } = require("@sanity/webhook");
  const signed = async (r, other) => { r.headers["sanity-webhook-signature"] = await encodeSignatureHeader(r.body, NOW * 1000 - 1500, other ?? "test"); };
  const cases = usual(signed);
  for (const [name, change] of Object.entries(cases)) {
    if (name !== "basic" && name !== "wrong-secret") cases[name] = async (r) => { await signed(r); r.body += name[0]; };
  }
  await provider("sanity", "@sanity/webhook", "test", cases, (r) => isValidSignature(r.body, r.headers["sanity-webhook-signature"], "test"));
});

await attempt("workos", async () => {
  const { WorkOS } = require("@workos-inc/node");
  const workos = new WorkOS("sk_test");
  const signed = (r, other, at = NOW * 1000 - 1500) => { r.body = '{"id":"event_1","event":"user.created","data":{}}'; r.event_id = "event_1"; r.event_type = "user.created"; r.headers["WorkOS-Signature"] = `t=${at}, v1=${hmac("sha256", other ?? "secret", at + "." + r.body, "hex")}`; };
  await provider("workos", "@workos-inc/node", "secret", {
    basic: (r) => signed(r), "wrong-secret": (r) => signed(r, "another"), "stale-181s": (r) => signed(r, undefined, (NOW - 181) * 1000),
    "body-changed": (r) => { signed(r); r.body = r.body.replace("user", "team"); },
  }, (r) => workos.webhooks.verifyHeader({ payload: JSON.parse(r.body), sigHeader: r.headers["WorkOS-Signature"], secret: "secret" }));
});

await attempt("mux", async () => {
  const Mux = require("@mux/mux-node");
  const mux = new (Mux.default ?? Mux)({ tokenId: "a", tokenSecret: "b", webhookSecret: "SuperSecret123" });
  const signed = (r, other, at = NOW - 1) => { r.event_id = "evt_1"; r.event_type = "order.paid"; r.headers["mux-signature"] = `t=${at},v1=${hmac("sha256", other ?? "SuperSecret123", at + "." + r.body, "hex")}`; };
  await provider("mux", "@mux/mux-node", "SuperSecret123", { ...usual(signed, "mux-signature"), "stale-301s": (r) => signed(r, undefined, NOW - 301) }, (r) => mux.webhooks.verifySignature(r.body, r.headers, "SuperSecret123"));
});

await attempt("pusher", async () => {
  const Pusher = require("pusher");
  const secret = "7ad3773142a6692b25b8";
  const pusher = new Pusher({ appId: "1", key: "278d425bdf160c739803", secret, cluster: "eu" });
  const signed = (r, other) => {
    r.body = '{"time_ms":1327078148132,"events":[{"name":"channel_occupied","channel":"orders"}]}'; r.event_type = "channel_occupied";
    r.headers = { "content-type": "application/json", "x-pusher-key": "278d425bdf160c739803", "x-pusher-signature": hmac("sha256", other ?? secret, r.body, "hex") };
  };
  await provider("pusher", "pusher", secret, {
    basic: (r) => signed(r), "wrong-secret": (r) => signed(r, "another"),
    "newline-changed": (r) => { signed(r); r.body += "\n"; },
    "without-header": (r) => { signed(r); delete r.headers["x-pusher-signature"]; },
  }, (r) => pusher.webhook({ headers: r.headers, rawBody: r.body }).isValid());
});

await attempt("webflow", async () => {
  const { WebflowClient } = require("webflow-api");
  const secret = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
  const { webhooks } = new WebflowClient({ accessToken: "none" });
  const signed = (r, other, at = NOW * 1000 - 1500) => {
    r.body = '{"triggerType":"form_submission","payload":{"name":"Contact"}}'; r.event_type = "form_submission";
    r.headers = { "x-webflow-timestamp": String(at), "x-webflow-signature": hmac("sha256", other ?? secret, `${at}:${r.body}`, "hex") };
  };
  await provider("webflow", "webflow-api", secret, {
    basic: (r) => signed(r), "wrong-secret": (r) => signed(r, "another"),
    "newline-changed": (r) => { signed(r); r.body += "\n"; },
    "time-changed": (r) => { signed(r); r.headers["x-webflow-timestamp"] = String(NOW * 1000); },
  }, (r) => webhooks.verifySignature({ headers: r.headers, body: r.body, secret }));
});

await attempt("gocardless", async () => {
  const webhooks = require("gocardless-nodejs/webhooks");
  const signed = (r, other) => { r.body = '{"events":[{"id":"EV1","resource_type":"payments","action":"confirmed"}]}'; r.event_id = "EV1"; r.event_type = "payments.confirmed"; r.headers["Webhook-Signature"] = hmac("sha256", other ?? "ED7D658C-D8EB", r.body, "hex"); };
  await provider("gocardless", "gocardless-nodejs", "ED7D658C-D8EB", {
    basic: (r) => signed(r), "wrong-secret": (r) => signed(r, "another"), "body-changed": (r) => { signed(r); r.body += " "; },
  }, (r) => webhooks.parse(r.body, "ED7D658C-D8EB", r.headers["Webhook-Signature"]));
});

await attempt("chargebee", async () => {
  const { basicAuthValidator } = require("chargebee");
  const check = basicAuthValidator((user, password) => `${user}:${password}` === "relay:s3cret");
  const signed = (r, who = "relay:s3cret") => {
    r.body = '{"id":"ev_1","event_type":"subscription_created","content":{}}'; r.event_id = "ev_1"; r.event_type = "subscription_created";
    r.headers = { "user-agent": "ChargeBee", authorization: "Basic " + Buffer.from(who).toString("base64") };
  };
  await provider("chargebee", "chargebee", "relay:s3cret", {
    basic: (r) => signed(r), "wrong-secret": (r) => signed(r, "relay:another"), "wrong-user": (r) => signed(r, "other:s3cret"),
    "without-header": (r) => { signed(r); delete r.headers.authorization; },
  }, async (r) => { await check(r.headers); });
});

await attempt("notion", async () => {
  const { signWebhookPayload, verifyWebhookSignature } = require("@notionhq/client");
  const secret = "secret_tMrlL1qK5vuQAh1b6cZGhFChZTSYJlce98V0pYn7yBl";
  const signed = async (r, other) => {
    r.body = '{"id":"367cba44-b6f3-4c92-81e7-6a2e9659efd4","type":"page.created","entity":{"id":"1","type":"page"}}';
    r.event_id = "367cba44-b6f3-4c92-81e7-6a2e9659efd4"; r.event_type = "page.created";
    r.headers["X-Notion-Signature"] = await signWebhookPayload({ body: r.body, verificationToken: other ?? secret });
  };
  await provider("notion", "@notionhq/client", secret, {
    basic: (r) => signed(r), "wrong-secret": (r) => signed(r, "another"),
    "newline-changed": async (r) => { await signed(r); r.body += "\n"; },
    "without-header": async (r) => { await signed(r); delete r.headers["X-Notion-Signature"]; },
  }, (r) => verifyWebhookSignature({ body: r.body, signature: r.headers["X-Notion-Signature"], verificationToken: secret }));
});

await attempt("dropbox-sign", async () => {
  const { EventCallbackHelper, EventCallbackRequest } = require("@dropbox/sign");
  const signed = (r, other, time = String(NOW - 5)) => {
    const event = { event_type: "signature_request_sent", event_time: time, event_hash: hmac("sha256", other ?? "api_key_1", time + "signature_request_sent", "hex"), event_metadata: {} };
    r.headers["Content-Type"] = "application/x-www-form-urlencoded";
    r.body = new URLSearchParams({ json: JSON.stringify({ event }) }).toString(); r.event_id = event.event_hash; r.event_type = event.event_type;
  };
  await provider("dropbox-sign", "@dropbox/sign", "api_key_1", {
    basic: (r) => signed(r), "wrong-secret": (r) => signed(r, "another"),
    "time-changed": (r) => { signed(r); r.body = r.body.replace(String(NOW - 5), String(NOW)); },
    "type-changed": (r) => { signed(r); r.body = r.body.replace("request_sent", "request_signed"); },
  }, (r) => EventCallbackHelper.isValid("api_key_1", EventCallbackRequest.init(JSON.parse(form(r.body).json))));
});

await attempt("coinbase-commerce", async () => {
  const { Webhook } = require("coinbase-commerce-node");
  const signed = (r, other) => {
    r.body = '{"id":1,"event":{"id":"24934862-d980-46cb-9402-43c81b0cdba6","type":"charge:confirmed","data":{"name":"Grüße"}}}';
    r.event_id = "24934862-d980-46cb-9402-43c81b0cdba6"; r.event_type = "charge:confirmed";
    r.headers["X-CC-Webhook-Signature"] = Webhook.computeSignature(r.body, other ?? "shared-1");
  };
  await provider("coinbase-commerce", "coinbase-commerce-node", "shared-1", {
    basic: (r) => signed(r), "wrong-secret": (r) => signed(r, "another"),
    "body-changed": (r) => { signed(r); r.body = r.body.replace("Grüße", "Grusse"); },
    "newline-changed": (r) => { signed(r); r.body += "\n"; },
  }, (r) => Webhook.verifySigHeader(r.body, r.headers["X-CC-Webhook-Signature"], "shared-1"));
});

// Coinbase sends with Hook0, whose client looks at v1 where there is one, and at v0 else; the row looks at v0.
await attempt("coinbase", async () => {
  const { verifyWebhookSignatureWithCurrentTime } = require("hook0-client");
  const secret = "2b6f4e1d-9d57-4c8e-8f0e-7d3f9a5b1c20";
  const names = ["content-type", "x-event-id", "x-event-type"];
  const signed = (r, other, at = NOW - 1, both = true) => {
    r.body = '{"eventType":"onchain.activity.detected","data":{"networkId":"base-sepolia"}}'; r.event_id = "b0a5a6b2-6a43-4b6c-9f4b-1d2c3e4f5a6b"; r.event_type = "onchain.activity.detected";
    r.headers = { "content-type": "application/json", "x-event-id": r.event_id, "x-event-type": r.event_type };
    const sign = (text) => hmac("sha256", other ?? secret, `${at}.${text}`, "hex");
    const v1 = sign(`${names.join(" ")}.${names.map((name) => r.headers[name]).join(".")}.${r.body}`);
    r.headers["x-hook0-signature"] = `t=${at},v0=${sign(r.body)}` + (both ? `,h=${names.join(" ")},v1=${v1}` : "");
  };
  await provider("coinbase", "hook0-client", secret, {
    both: (r) => signed(r), "v0-alone": (r) => signed(r, undefined, NOW - 1, false), "wrong-secret": (r) => signed(r, "another"),
    "body-changed": (r) => { signed(r); r.body += " "; },
    "time-changed": (r) => { signed(r); r.headers["x-hook0-signature"] = r.headers["x-hook0-signature"].replace(`t=${NOW - 1}`, `t=${NOW}`); },
    "stale-301s": (r) => signed(r, undefined, NOW - 301),
  }, (r) => verifyWebhookSignatureWithCurrentTime(r.headers["x-hook0-signature"], Buffer.from(r.body), new Headers(r.headers), secret, 300, new Date(NOW * 1000)));
});

// The last of its packages that judges webhooks; what is signed has stayed the same.
await attempt("nylas", async () => {
  const { default: WebhookNotification } = require("nylas/lib/models/webhook-notification");
  const signed = (r, other) => {
    r.body = '{"specversion":"1.0","type":"message.created","id":"5TCz7PKnTFEo6xcnG21pq","data":{"object":{"subject":"Grüße"}}}';
    r.event_id = "5TCz7PKnTFEo6xcnG21pq"; r.event_type = "message.created"; r.headers["x-nylas-signature"] = hmac("sha256", other ?? "whs-1", r.body, "hex");
  };
  await provider("nylas", "nylas", "whs-1", {
    basic: (r) => signed(r), "wrong-secret": (r) => signed(r, "another"),
    "body-changed": (r) => { signed(r); r.body = r.body.replace("Grüße", "Grusse"); },
    "newline-changed": (r) => { signed(r); r.body += "\n"; },
    "without-header": (r) => { signed(r); delete r.headers["x-nylas-signature"]; },
  }, (r) => WebhookNotification.verifyWebhookSignature(r.headers["x-nylas-signature"], r.body, "whs-1"));
});

await attempt("atlassian-connect", async () => {
  const jwt = require("atlassian-jwt");
  const token = (r, other, more) => jwt.encodeSymmetric({ iss: "key", iat: NOW - 5, exp: NOW + 175, qsh: jwt.createQueryStringHash(jwt.fromMethodAndUrl(r.method, "/hooks?user_id=u&a=1"), false), ...more }, other ?? "shared", "HS256");
  const signed = (r, other, more) => { r.url = "https://t-7f3a.relay.example/hooks?user_id=u&a=1"; r.headers.Authorization = "JWT " + token(r, other, more); };
  await provider("atlassian-connect", "atlassian-jwt", "shared", {
    basic: (r) => signed(r), "wrong-secret": (r) => signed(r, "another"),
    "stale-token": (r) => signed(r, undefined, { exp: NOW - 60 }),
    "other-query": (r) => { signed(r); r.url = r.url.replace("a=1", "a=2"); },
  }, (r) => {
    const claims = jwt.decodeSymmetric(r.headers.Authorization.slice(4), "shared", "HS256");
    const query = new URL(r.url).search;
    return claims.exp > NOW && claims.qsh === jwt.createQueryStringHash(jwt.fromMethodAndUrl(r.method, "/hooks" + query), false);
  }, { config: { path: "/hooks" } });
});

// A key as such providers publish it: a certificate at an address that the request names.
function certificate(name) {
  const file = mkdtempSync(tmpdir() + "/key-") + "/key.pem";
  const request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", file, "-days", "36500", "-subj", "/CN=" + name];
  const pem = execFileSync("openssl", request, { stdio: ["ignore", "pipe", "ignore"] }).toString();
  return { privateKey: createPrivateKey(readFileSync(file)), pem };
}

await attempt("aws-sns", async () => {
  const Validator = require("sns-validator");
  const { privateKey, pem } = certificate("sns.amazonaws.com");
  const other = certificate("other").privateKey;
  const at = "https://sns.us-west-2.amazonaws.com/SimpleNotificationService-abc.pem";
  https.get = (url, done) => {
    const answer = { statusCode: 200, on: (event, handler) => (handler(event === "data" ? pem : undefined), answer) };
    done(answer);
    return { on: () => {} };
  };
  const signed = (version, more = {}, wrong) => (r) => {
    const message = {
      Type: "Notification", MessageId: "22b80b92", TopicArn: "arn:aws:sns:us-west-2:123456789012:MyTopic", Message: "Grüße\n\"1\"",
      Timestamp: "2026-01-01T00:00:00.000Z", SignatureVersion: version, SigningCertURL: at, ...more,
    };
    const keys = message.Type === "Notification" ? ["Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"] : ["Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"];
    const text = keys.filter((key) => key in message).map((key) => `${key}\n${message[key]}\n`).join("");
    message.Signature = sign(version === "1" ? "sha1" : "sha256", Buffer.from(text), wrong ? other : privateKey).toString("base64");
    r.body = JSON.stringify(message, null, 2);
    r.headers = { "x-amz-sns-message-type": message.Type, "x-amz-sns-message-id": message.MessageId, "Content-Type": "text/plain; charset=UTF-8" };
    r.event_id = "22b80b92";
  };
  const confirmation = { Type: "SubscriptionConfirmation", Token: "2336", SubscribeURL: "https://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription" };
  await provider("aws-sns", "sns-validator", "", {
    "version-1": signed("1"), "version-2": signed("2"), "with-subject": signed("1", { Subject: "My subject" }),
    confirmation: signed("1", confirmation),
    "message-changed": (r) => { signed("2")(r); r.body = r.body.replace("Grü", "Gru"); },
    "subject-changed": (r) => { signed("1")(r); r.body = r.body.replace('"Type"', '"Subject": "new", "Type"'); },
    "wrong-key": signed("1", {}, true),
    "other-host": signed("1", { SigningCertURL: "https://sns.us-west-2.amazonaws.com.example.com/a.pem" }),
  }, (r) => new Promise((resolve, reject) => new Validator().validate(r.body, (error) => error ? reject(error) : resolve(true))), { published: { [at]: pem } });
});

await attempt("paypal", async () => {
  const { privateKey, pem } = certificate("messageverificationcerts.sandbox.paypal.com");
  const other = certificate("messageverificationcerts.sandbox.paypal.com").privateKey;
  const at = "https://api.sandbox.paypal.com/v1/notifications/certs/CERT-360caa42-fca2a594-a5cafa77";
  // All but the chain of the certificate, which nobody here can make.
  const python = `import json, sys
from OpenSSL import crypto
from paypalrestsdk.notifications import WebhookEvent
r = json.load(sys.stdin)
cert = crypto.load_certificate(crypto.FILETYPE_PEM, r["pem"])
good = WebhookEvent._is_common_name_valid(cert) and WebhookEvent._verify_signature(
    r["id"], r["time"], r["webhook"], r["body"], cert, r["signature"], "sha256WithRSAEncryption")
sys.exit(0 if good else 1)`;
  const crc32 = (text) => execFileSync("python3", ["-c", "import sys, zlib; print(zlib.crc32(sys.stdin.buffer.read()))"], { input: text }).toString().trim();
  const signed = (r, webhook = "9XL90610J3647323C", key = privateKey) => {
    r.body = '{"id":"WH-9UG43882HX7271132-6E0871324L7949614","event_type":"PAYMENT.SALE.COMPLETED","summary":"Für 21.00 EUR","resource":{}}';
    r.event_id = "WH-9UG43882HX7271132-6E0871324L7949614"; r.event_type = "PAYMENT.SALE.COMPLETED";
    r.headers = { "paypal-transmission-id": "d938e770-8046-11e6-8103-6b62a8a99ac4", "paypal-transmission-time": "2025-12-31T23:59:55Z", "paypal-auth-algo": "SHA256withRSA", "paypal-cert-url": at };
    const text = [r.headers["paypal-transmission-id"], r.headers["paypal-transmission-time"], webhook, crc32(r.body)].join("|");
    r.headers["paypal-transmission-sig"] = sign("sha256", Buffer.from(text), key).toString("base64");
  };
  await provider("paypal", "PyPI:paypalrestsdk", "", {
    basic: (r) => signed(r), "wrong-key": (r) => signed(r, undefined, other), "other-webhook": (r) => signed(r, "0AB12345CD678901E"),
    "body-changed": (r) => { signed(r); r.body = r.body.replace("21.00", "22.00"); },
    "time-changed": (r) => { signed(r); r.headers["paypal-transmission-time"] = "2025-12-31T23:59:56Z"; },
  }, (r) => {
    const said = { pem, id: r.headers["paypal-transmission-id"], time: r.headers["paypal-transmission-time"], webhook: "9XL90610J3647323C", body: r.body, signature: r.headers["paypal-transmission-sig"] };
    execFileSync("python3", ["-c", python], { input: JSON.stringify(said), stdio: ["pipe", "ignore", "ignore"] });
  }, { config: { webhook_id: "9XL90610J3647323C" }, published: { [at]: pem } });
});

await attempt("google-pubsub", async () => {
  const { OAuth2Client } = require("google-auth-library");
  const { privateKey, publicKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  const other = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey;
  const jwk = { ...publicKey.export({ format: "jwk" }), kid: "k1", alg: "RS256", use: "sig" };
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const signed = (r, more = {}, key = privateKey) => {
    r.body = '{"message":{"data":"aGk=","messageId":"136969346945"},"subscription":"projects/p/subscriptions/s"}'; r.event_id = "136969346945";
    const claims = { iss: "https://accounts.google.com", aud: r.url, email: "push@p.iam.gserviceaccount.com", email_verified: true, iat: NOW - 5, exp: NOW + 3595, ...more };
    const text = part({ alg: "RS256", kid: "k1", typ: "JWT" }) + "." + part(claims);
    r.headers.Authorization = "Bearer " + text + "." + sign("sha256", Buffer.from(text), key).toString("base64url");
  };
  await provider("google-pubsub", "google-auth-library", "", {
    basic: (r) => signed(r), "wrong-key": (r) => signed(r, {}, other),
    "other-audience": (r) => signed(r, { aud: "https://other.example/" }),
    "other-account": (r) => signed(r, { email: "somebody@q.iam.gserviceaccount.com" }),
    "stale-token": (r) => signed(r, { iat: NOW - 7200, exp: NOW - 3600 }),
  }, async (r) => {
    const client = new OAuth2Client();
    client.clockSkewSecs_ = 10;
    const ticket = await client.verifySignedJwtWithCertsAsync(r.headers.Authorization.slice(7), { k1: publicKey.export({ type: "spki", format: "pem" }) }, r.url, ["https://accounts.google.com"]);
    return ticket.getPayload().email === "push@p.iam.gserviceaccount.com";
  }, { config: { service_account: "push@p.iam.gserviceaccount.com" }, published: { "https://www.googleapis.com/oauth2/v3/certs": JSON.stringify({ keys: [jwk] }) } });
});

await attempt("plaid", async () => {
  const jose = await import("jose");
  const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const other = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey;
  const secret = JSON.stringify({ ...publicKey.export({ format: "jwk" }), kid: "bfbd5111", alg: "ES256", use: "sig" });
  const signed = async (r, at = NOW - 5, key = privateKey) => {
    r.body = '{\n  "webhook_type": "ITEM",\n  "webhook_code": "ERROR"\n}'; r.event_type = "ITEM.ERROR";
    const claims = { request_body_sha256: createHash("sha256").update(r.body).digest("hex") };
    r.headers["Plaid-Verification"] = await new jose.SignJWT(claims).setProtectedHeader({ alg: "ES256", kid: "bfbd5111", typ: "JWT" }).setIssuedAt(at).sign(key);
  };
  await provider("plaid", "jose", secret, {
    basic: (r) => signed(r), "wrong-key": (r) => signed(r, undefined, other), "stale-301s": (r) => signed(r, NOW - 301),
    "body-changed": async (r) => { await signed(r); r.body = JSON.stringify(JSON.parse(r.body)); },
  }, async (r) => {
    const { payload } = await jose.jwtVerify(r.headers["Plaid-Verification"], publicKey, { algorithms: ["ES256"], maxTokenAge: "5 min", currentDate: new Date(NOW * 1000) });
    return payload.request_body_sha256 === createHash("sha256").update(r.body).digest("hex");
  });
});

let count = [0, 0];
for (const [id, file] of Object.entries(files)) {
  for (const vector of file.vectors) count[vector.expect.valid ? 0 : 1] += 1;
  writeFileSync(`${process.argv[2]}/${id}.json`, JSON.stringify(file, null, 1) + "\n");
}
console.log(Object.keys(files).length, "providers,", count[0], "valid,", count[1], "tampered");
