//! What can be asked of a relay by whoever operates it, and what it answers.

use std::time::Duration;

use relay_protocol::inbox::Inbox;
use relay_protocol::inbox::api::{self, Which};
use serde::{Deserialize, Serialize};

use crate::audit;
use crate::blocks::{Block, Target};
use crate::descriptors::What;
use crate::reload::Reloaded;
use crate::status;
use crate::store::{LimitChange, Name, NewToken, Secret, Token, TokenId, TokenLimits, TokenSummary};

/// What can be asked of a relay.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Whether it is there.
    Ping,
    /// Make a token.
    CreateToken(NewToken),
    /// Change what a token may have.
    LimitToken {
        /// The token's name.
        token: String,
        /// What is to be different.
        change: LimitChange,
    },
    /// Tell all tokens.
    ListTokens,
    /// Tell one token: none of that name, or the last one that has had it.
    FindToken {
        /// The token's name.
        token: String,
    },
    /// End a token and its sessions.
    RevokeToken {
        /// The token's name.
        token: String,
    },
    /// End a token and its sessions, and know nothing more of it, nor of the names that it had: it was only for a trial.
    ForgetToken {
        /// The token's name.
        token: String,
    },
    /// How the relay is.
    Status,
    /// Make tunnel names a token's own for good.
    Reserve {
        /// The token's name.
        token: String,
        /// The tunnel names.
        names: Vec<Name>,
        /// Whose handshakes are answered there while the client is away, as the provider's id.
        #[serde(default)]
        provider: Option<String>,
        /// How their inboxes deal with webhooks. None: those that have one keep it as it is.
        #[serde(default)]
        inbox: Option<Inbox>,
    },
    /// Give up reservations, and close the names' inboxes.
    Release {
        /// The tunnel names.
        names: Vec<Name>,
        /// Also where webhooks are in them that were not delivered.
        #[serde(default)]
        forget: bool,
    },
    /// Something of inboxes, whoever's they are.
    Inbox(InboxRequest),
    /// Tell the sessions.
    ListSessions,
    /// End a session. Its client comes back where it may.
    EndSession {
        /// The session's id.
        session: String,
    },
    /// Tell the names that connected clients serve.
    ListTunnels,
    /// Tell what handshakes show.
    ListCertificates,
    /// Keep something out.
    Block {
        /// What.
        target: Target,
        /// Why.
        reason: String,
    },
    /// Keep something out no longer.
    Unblock {
        /// The block's number.
        id: i64,
    },
    /// Tell what is kept out.
    ListBlocks,
    /// Tell who did what, the latest first.
    Audit {
        /// Those before this one.
        before: Option<i64>,
        /// So many at most.
        limit: usize,
    },
    /// Tell the secret that the admin API asks for, or make another one in its place.
    AdminToken {
        /// Another one.
        renew: bool,
    },
    /// Read the configuration anew.
    Reload,
    /// Start another process of the program that is there by now, and let it take over.
    Upgrade,
    /// Hand over to the process that asks. What follows stands in [`crate::succession`].
    TakeOver {
        /// Its version.
        version: String,
    },
}

/// What can be asked of inboxes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum InboxRequest {
    /// Tell all inboxes.
    List,
    /// Tell the webhooks of one, the newest first.
    Page {
        /// Its name.
        inbox: String,
        /// Only those that are `waiting`, `delivered` or `dead`.
        state: Option<String>,
        /// Those that follow on this page.
        #[serde(default)]
        before: Option<String>,
        /// So many at most.
        limit: usize,
    },
    /// Tell all of one webhook.
    Show {
        /// The inbox.
        inbox: String,
        /// The webhook.
        id: String,
    },
    /// Try webhooks at once.
    Retry {
        /// The inbox.
        inbox: String,
        /// The webhooks.
        which: Which,
    },
    /// Forget webhooks.
    Drop {
        /// The inbox.
        inbox: String,
        /// The webhooks.
        which: Which,
    },
    /// Let the deliveries of an inbox rest, or go on.
    Pause {
        /// The inbox.
        inbox: String,
        /// Whether they rest.
        paused: bool,
    },
    /// Close an inbox, and forget what is in it.
    Close {
        /// The inbox.
        inbox: String,
    },
}

impl Request {
    /// How long the command waits for the reply.
    pub(super) fn patience(&self) -> Duration {
        let [short, long] = super::REPLY_TIME;
        use InboxRequest::{Drop, Retry, Show};
        let is_long = matches!(self, Self::Upgrade | Self::Inbox(Show { .. } | Retry { .. } | Drop { .. }));
        if is_long { long } else { short }
    }
}

/// What a request has changed for those who are connected or expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// There is a token, which may have the name of one that has ended.
    Created(TokenId),
    /// The token has other limits.
    Limited(TokenId),
    /// Something else is kept out, or no longer.
    Blocks,
    /// The token has ended.
    Revoked(TokenId),
    /// Names are a token's own from now on, and for the webhooks of a provider, if for any.
    Reserved {
        /// The token.
        token: TokenId,
        /// The tunnel names.
        names: Vec<Name>,
        /// The provider's id.
        provider: Option<String>,
        /// How their inboxes deal with webhooks, where that was said.
        inbox: Option<Box<Inbox>>,
    },
    /// Names are not reserved any more, and have no inbox.
    Released {
        /// The tunnel names.
        names: Vec<Name>,
    },
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// It is there.
    Pong {
        /// Its version.
        version: String,
    },
    /// The token was made.
    Created {
        /// What its owner will present; this is the only time that it is seen.
        #[serde(with = "exposed")]
        secret: Secret,
        /// What the relay knows of it.
        token: Token,
    },
    /// All tokens.
    Tokens {
        /// In the order they were made.
        tokens: Vec<TokenSummary>,
    },
    /// The token has these limits now.
    Limited {
        /// All of them.
        limits: TokenLimits,
    },
    /// The token has ended.
    Revoked,
    /// How the relay is.
    Status(Box<status::Status>),
    /// The names are reserved.
    Reserved,
    /// The names are released.
    Released {
        /// So many inboxes were closed.
        #[serde(default)]
        closed: u64,
        /// Webhooks in them that were not delivered.
        #[serde(default)]
        forgotten: u64,
    },
    /// All inboxes.
    Inboxes(api::Inboxes),
    /// An inbox and its webhooks.
    Webhooks(api::Page),
    /// A webhook.
    Webhook(Box<api::Whole>),
    /// An inbox as it is now.
    Inbox(api::Inbox),
    /// It was done.
    Done(api::Done),
    /// The configuration was read anew.
    Reloaded(Reloaded),
    /// Another process serves.
    Upgraded {
        /// Its id, where the system knows it.
        process: Option<u32>,
        /// Its version.
        version: String,
    },
    /// These descriptors come with it, in this order.
    Descriptors {
        /// What they are for.
        what: Vec<What>,
    },
    /// The sessions.
    Sessions {
        /// In the order in which they began.
        sessions: Vec<status::Session>,
    },
    /// The tunnels.
    Tunnels {
        /// By name.
        tunnels: Vec<status::Tunnel>,
    },
    /// The certificates.
    Certificates {
        /// Those that handshakes show.
        certificates: Vec<status::Certificate>,
    },
    /// It is kept out.
    Blocked {
        /// As it is told.
        block: Block,
    },
    /// It is not kept out any more.
    Unblocked {
        /// As it was told.
        block: Block,
    },
    /// What is kept out.
    Blocks {
        /// In the order in which it was said.
        blocks: Vec<Block>,
    },
    /// Who did what.
    Audit {
        /// The latest first.
        entries: Vec<audit::Entry>,
    },
    /// The secret that the admin API asks for.
    AdminToken {
        /// It.
        #[serde(with = "exposed")]
        secret: Secret,
    },
    /// It was not done.
    Refused {
        /// Of what kind it is, for a program.
        #[serde(default)]
        why: Why,
        /// Why, for the person who asked.
        message: String,
    },
}

/// Of what kind a refusal is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// What was asked is not what it should be.
    Invalid,
    /// There is no such thing.
    Unknown,
    /// Something is in the way that can be changed.
    Conflict,
    /// The relay could not do it.
    #[default]
    Failed,
}

impl Reply {
    /// A refusal that is nobody's fault but the relay's, or of nobody who could ask better.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Refused { why: Why::Failed, message: message.into() }
    }
}

/// The messages that carry a secret: from the relay to whoever asked for it.
mod exposed {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::store::Secret;

    pub(super) fn serialize<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(secret.expose())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        Secret::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
