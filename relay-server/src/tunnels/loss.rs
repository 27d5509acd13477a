//! How a client is told that a name is not its own any more.

use relay_protocol::frame::SessionKind;
use relay_protocol::message::{Lost, Refusal};

use super::{Tunnel, send};

/// Why a client loses a name that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Another client with the same token has it now.
    TakenOver,
    /// The operator keeps it out.
    Blocked,
    /// Another token has shown that the domain is its own.
    Proven,
    /// The operator has given it up.
    Released,
}

impl Loss {
    fn of(self, name: &str) -> Refusal {
        let (code, message, hint) = match self {
            // Whose it was knows which.
            Self::TakenOver => {
                ("taken-over", "Another client with the same token has taken the name over.".to_owned(), "")
            }
            Self::Blocked => {
                ("blocked", format!("The relay's operator has blocked the name {name}."), "Ask the operator why.")
            }
            Self::Proven => (
                "domain-lost",
                format!(
                    "{name} is another token's now, which a TXT record at _relay-challenge.{name} shows; there is none of this token any more."
                ),
                "Where the domain is yours, start the client again, which says what to set.",
            ),
            Self::Released => {
                ("released", format!("The relay's operator has given the domain {name} up."), "Ask the operator why.")
            }
        };
        Refusal { code: code.to_owned(), message, hint: hint.to_owned() }
    }
}

impl Tunnel {
    /// Tells the client, which knows of the tunnel, that it has lost it.
    pub(crate) fn tell_lost(&self, loss: Loss) {
        let lost = Lost { tunnel: self.number, why: loss.of(&self.name), extra: Vec::new() };
        send(&self.link, SessionKind::Lost, &lost);
        send(&self.link, SessionKind::Unbind, &self.number);
    }
}
