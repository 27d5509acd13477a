// Says of each webhook on standard input, a line of JSON each, whether the library of its provider takes it:
// {"provider", "secret", "method", "url", "headers": [[name, value]...], "body_base64", "now"} gives {"provider", "valid"}.
// The libraries are found through NODE_PATH. Their clock shows `now`, in milliseconds since 1970: one takes nothing that is
// older than five seconds, and a busy machine is slower than that.
const path = require("path");
const { pathToFileURL } = require("url");

// Node.js 18 has it in a module alone, and some look for it where browsers have it.
globalThis.crypto ??= require("crypto").webcrypto;

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
// Some of them are modules of the newer kind, which look beside the script and nowhere else.
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
  square: ({ url, body, headers, secret }) =>
    require("square").WebhooksHelper.isValidWebhookEventSignature(
      body, headers["x-square-hmacsha256-signature"], secret, url),
  shopify: async ({ method, url, body, headers, secret }) => {
    require("@shopify/shopify-api/adapters/web-api");
    const { shopifyApi, ApiVersion, LogSeverity } = require("@shopify/shopify-api");
    const app = shopifyApi({
      apiKey: "none", apiSecretKey: secret, apiVersion: ApiVersion.October24, hostName: "none.example", isEmbeddedApp: true,
      logger: { level: LogSeverity.Error },
    });
    const judged = await app.webhooks.validate({ rawBody: body, rawRequest: new Request(url, { method, headers, body }) });
    return judged.valid;
  },
  line: ({ body, headers, secret }) => require("@line/bot-sdk").validateSignature(body, secret, headers["x-line-signature"]),
  pusher: ({ body, headers, secret }) => {
    const app = new (require("pusher"))({ appId: "none", key: "relay-test", secret, cluster: "none" });
    return app.webhook({ headers, rawBody: body }).isValid();
  },
  adyen: ({ body, headers, secret }) => {
    const validator = new (require("@adyen/api-library").hmacValidator)();
    return headers.hmacsignature
      ? validator.validateHMACSignature(secret, headers.hmacsignature, body)
      : validator.validateHMAC(JSON.parse(body).notificationItems[0].NotificationRequestItem, secret);
  },
  gocardless: ({ body, headers, secret }) =>
    require("gocardless-nodejs/webhooks").parse(body, secret, headers["webhook-signature"]),
  telnyx: async ({ body, headers, secret }) => {
    const { default: Telnyx } = await module_of("telnyx/dist/telnyx.node.js");
    const bytes = (text) => Buffer.from(text, "base64");
    return new Telnyx("none").webhooks.constructEvent(
      body, bytes(headers["telnyx-signature-ed25519"]), headers["telnyx-timestamp"], bytes(secret));
  },
  workos: ({ body, headers, secret }) =>
    new (require("@workos-inc/node").WorkOS)("none").webhooks.constructEvent({
      payload: JSON.parse(body), sigHeader: headers["workos-signature"], secret,
    }),
  openai: ({ body, headers, secret }) =>
    new (require("openai").OpenAI)({ apiKey: "none" }).webhooks.verifySignature(body, headers, secret),
  mux: ({ body, headers, secret }) =>
    new (require("@mux/mux-node").Mux)({ tokenId: "none", tokenSecret: "none" }).webhooks.verifySignature(body, headers, secret),
  sanity: ({ body, headers, secret }) =>
    require("@sanity/webhook").isValidSignature(body, headers["sanity-webhook-signature"], secret),
  polar: ({ body, headers, secret }) => require("@polar-sh/sdk/2026-04").webhooks.validateEvent(body, headers, secret),
  svix: ({ body, headers, secret }) => new (require("svix").Webhook)(secret).verify(body, headers),
  resend: ({ body, headers, secret }) =>
    new (require("resend").Resend)("none").webhooks.verify({
      payload: body, webhookSecret: secret,
      headers: { id: headers["svix-id"], timestamp: headers["svix-timestamp"], signature: headers["svix-signature"] },
    }),
  braintree: (request) => {
    const { bt_signature, bt_payload } = form(request);
    const { BraintreeGateway, Environment } = require("braintree");
    const keys = { environment: Environment.Sandbox, merchantId: "none", publicKey: "relay-test", privateKey: request.secret };
    return new BraintreeGateway(keys).webhookNotification.parse(bt_signature, bt_payload);
  },
  contentful: ({ method, url, body, headers, secret }) =>
    require("@contentful/node-apps-toolkit").verifyRequest(secret, { method, path: new URL(url).pathname, headers, body }),
  "dropbox-sign": ({ body, secret }) => {
    const { EventCallbackHelper, EventCallbackRequest } = require("@dropbox/sign");
    return EventCallbackHelper.isValid(secret, EventCallbackRequest.init(JSON.parse(body)));
  },
  notion: ({ body, headers, secret }) =>
    require("@notionhq/client").verifyWebhookSignature({
      body, signature: headers["x-notion-signature"], verificationToken: secret,
    }),
  zoom: async ({ body, headers, secret }) => {
    // It prints what it is given, where our answers go.
    console.debug = () => {};
    const receiver = new (require("@zoom/rivet/meetings").AwsLambdaReceiver)({ webhooksSecretToken: secret });
    return (await receiver.start()({ body, headers, isBase64Encoded: false }, {})).statusCode === 200;
  },
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
