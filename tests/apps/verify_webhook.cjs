// Says of each webhook on standard input, a line of JSON each, whether the library of its provider takes it:
// {"provider", "secret", "method", "url", "headers": [[name, value]...], "body_base64", "now"} gives {"provider", "valid"}.
// The libraries are found through NODE_PATH. Their clock shows `now`, in milliseconds since 1970: one takes nothing that is
// older than five seconds, and a busy machine is slower than that.
const path = require("path");
const { pathToFileURL } = require("url");

let now = 0;
globalThis.Date = class extends Date {
  constructor(...given) {
    super(...(given.length ? given : [now]));
  }
  static now() {
    return now;
  }
};

const form = (request) => Object.fromEntries(new URLSearchParams(request.body));
// Two of them are modules of the newer kind, which look beside the script and nowhere else.
const module_of = (file) => import(pathToFileURL(path.join(process.env.NODE_PATH, file)));

const libraries = {
  stripe: ({ body, headers, secret }) =>
    new (require("stripe"))("sk_test_none").webhooks.constructEvent(body, headers["stripe-signature"], secret),
  github: async ({ body, headers, secret }) =>
    (await module_of("@octokit/webhooks-methods/dist-node/index.js")).verify(secret, body, headers["x-hub-signature-256"]),
  slack: ({ body, headers, secret }) =>
    require("@slack/bolt/dist/receivers/verify-request").verifySlackRequest({ signingSecret: secret, body, headers }),
  twilio: (request) =>
    require("twilio").validateRequest(request.secret, request.headers["x-twilio-signature"], request.url, form(request)),
  sendgrid: ({ body, headers, secret }) => {
    const { EventWebhook } = require("@sendgrid/eventwebhook");
    const webhook = new EventWebhook();
    const header = (name) => headers[`x-twilio-email-event-webhook-${name}`];
    return webhook.verifySignature(webhook.convertPublicKeyToECDSA(secret), body, header("signature"), header("timestamp"));
  },
  discord: ({ body, headers, secret }) =>
    require("discord-interactions").verifyKey(
      body, headers["x-signature-ed25519"], headers["x-signature-timestamp"], secret),
  hubspot: ({ method, url, body, headers, secret }) =>
    require("@hubspot/api-client").Signature.isValid({
      signatureVersion: "v3", signature: headers["x-hubspot-signature-v3"], method, clientSecret: secret,
      requestBody: body, url, timestamp: Number(headers["x-hubspot-request-timestamp"]),
    }),
  "standard-webhooks": ({ body, headers, secret }) =>
    new (require("standardwebhooks").Webhook)(secret).verify(body, headers),
  paddle: ({ body, headers, secret }) =>
    new (require("@paddle/paddle-node-sdk").Paddle)("none").webhooks.isSignatureValid(body, secret, headers["paddle-signature"]),
  razorpay: ({ body, headers, secret }) =>
    require("razorpay").validateWebhookSignature(body, headers["x-razorpay-signature"], secret),
  plivo: (request) =>
    require("plivo").validateV3Signature(
      request.method, request.url, request.headers["x-plivo-signature-v3-nonce"], request.secret,
      request.headers["x-plivo-signature-v3"], form(request)),
};

async function judge(line) {
  const request = JSON.parse(line);
  now = request.now;
  request.body = Buffer.from(request.body_base64, "base64").toString();
  request.headers = Object.fromEntries(request.headers);
  try {
    // What they say is true, nothing, or the event itself; or they throw.
    return (await libraries[request.provider](request)) !== false;
  } catch (error) {
    console.error(`${request.provider}: ${error}`);
    return false;
  }
}

async function main() {
  const chunks = [];
  for await (const chunk of process.stdin) chunks.push(chunk);
  for (const line of Buffer.concat(chunks).toString().split("\n").filter(Boolean)) {
    console.log(JSON.stringify({ provider: JSON.parse(line).provider, valid: await judge(line) }));
  }
}

main();
