//! The handful of ways in which providers sign, as arithmetic over bytes.

use std::{convert::Infallible, sync::Arc};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{Context, Digest, SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest},
    encoding::{AsDer, PublicKeyX509Der},
    hmac,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED, ED25519, EcdsaKeyPair,
        Ed25519KeyPair, KeyPair as _, RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA256,
        RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
    },
};
use base64::{
    Engine as _,
    alphabet::{STANDARD as STANDARD_ALPHABET, URL_SAFE as URL_SAFE_ALPHABET},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, pem::PemObject as _};
use serde::Deserialize;

/// How a signature comes from a content and a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Scheme {
    /// RFC 2104.
    HmacSha256,
    HmacSha1,
    /// A hash of a content that has the secret in it.
    Sha256,
    /// The secret itself.
    Equal,
    /// RFC 8032.
    Ed25519,
    /// FIPS 186-5, with the signature in DER.
    EcdsaP256Sha256,
    /// RFC 8017, PKCS #1 v1.5.
    RsaSha256,
    RsaSha1,
    /// RFC 7515 and RFC 7518: a JSON Web Token beside the request, whose claims say what it is about.
    JwtHs256,
    JwtRs256,
    JwtEs256,
}

impl Scheme {
    /// Whether it takes the same secret to sign as to verify.
    pub(super) fn is_symmetric(self) -> bool {
        matches!(self, Self::HmacSha256 | Self::HmacSha1 | Self::Sha256 | Self::Equal | Self::JwtHs256)
    }

    pub(super) fn is_token(self) -> bool {
        matches!(self, Self::JwtHs256 | Self::JwtRs256 | Self::JwtEs256)
    }

    /// How many bytes each signature has, where they are always as many.
    pub(super) fn signature_len(self) -> Option<usize> {
        match self {
            Self::HmacSha256 | Self::Sha256 => Some(32),
            Self::HmacSha1 => Some(20),
            Self::Ed25519 => Some(64),
            _ => None,
        }
    }
}

/// How the text of a secret becomes a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum KeyForm {
    /// Its bytes as they are.
    #[default]
    Text,
    /// Decoded.
    Hex,
    /// Decoded, without the prefix that tells such secrets.
    Base64,
    /// The SHA-1 of its bytes.
    Sha1,
}

impl KeyForm {
    /// `None`: the secret is not in that form, or nothing is left of it.
    pub(super) fn key(self, secret: &str, prefix: Option<&str>) -> Option<Vec<u8>> {
        let bare = prefix.and_then(|prefix| secret.strip_prefix(prefix)).unwrap_or(secret);
        let key = match self {
            Self::Text => Some(secret.as_bytes().to_vec()),
            Self::Hex => Encoding::Hex.decode(&bare.to_ascii_lowercase()),
            Self::Base64 => lenient_base64(bare),
            Self::Sha1 => Some(digest(&SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes()).as_ref().to_vec()),
        };
        key.filter(|key| !key.is_empty())
    }
}

/// How bytes stand in a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Encoding {
    #[default]
    Text,
    /// In lower case: the providers' own libraries compare texts, and take no other.
    Hex,
    /// With its padding (RFC 4648, section 4).
    Base64,
    /// Without padding (RFC 4648, section 5).
    Base64Url,
}

impl Encoding {
    pub(super) fn decode(self, text: &str) -> Option<Vec<u8>> {
        match self {
            Self::Text => Some(text.as_bytes().to_vec()),
            Self::Hex => {
                let digit = |byte: &u8| match byte {
                    b'0'..=b'9' => Some(byte - b'0'),
                    b'a'..=b'f' => Some(byte - b'a' + 10),
                    _ => None,
                };
                // A collected option would not know how many there are.
                let mut bytes = Vec::with_capacity(text.len() / 2);
                for pair in text.as_bytes().chunks(2) {
                    let [high, low] = pair else { return None };
                    bytes.push(digit(high)? << 4 | digit(low)?);
                }
                Some(bytes)
            }
            Self::Base64 => BASE64_STANDARD.decode(text).ok(),
            Self::Base64Url => BASE64_URL_SAFE_NO_PAD.decode(text).ok(),
        }
    }

    pub(super) fn encode(self, bytes: &[u8]) -> String {
        match self {
            Self::Text => String::from_utf8_lossy(bytes).into_owned(),
            Self::Hex => hex(bytes),
            Self::Base64 => BASE64_STANDARD.encode(bytes),
            Self::Base64Url => BASE64_URL_SAFE_NO_PAD.encode(bytes),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Hex => "hex",
            Self::Base64 => "base64",
            Self::Base64Url => "base64url",
        }
    }
}

/// A secret as people copy it: either alphabet, with padding or without.
pub(super) fn lenient_base64(text: &str) -> Option<Vec<u8>> {
    const EITHER: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let url_safe = text.contains(['-', '_']);
    let alphabet = if url_safe { &URL_SAFE_ALPHABET } else { &STANDARD_ALPHABET };
    GeneralPurpose::new(alphabet, EITHER).decode(text).ok()
}

/// Something that writes a content piece by piece.
pub(super) type Content<'c, E> = &'c dyn Fn(&mut dyn FnMut(&[u8])) -> Result<(), E>;

/// A key that verifies.
pub(super) enum Key {
    /// It is large.
    Hmac(Box<hmac::Key>),
    /// For a content with the secret in it.
    Hash,
    Equal(Vec<u8>),
    Public(UnparsedPublicKey<Vec<u8>>),
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
}

impl Key {
    /// `bytes` as [`KeyForm::key`] gives them, or as DER. `None`: the scheme has no such key.
    pub(super) fn new(scheme: Scheme, bytes: Vec<u8>) -> Option<Self> {
        let public = |algorithm: &'static dyn VerificationAlgorithm| UnparsedPublicKey::new(algorithm, bytes.clone());
        Some(match scheme {
            Scheme::HmacSha256 | Scheme::JwtHs256 => Self::Hmac(hmac::Key::new(hmac::HMAC_SHA256, &bytes).into()),
            Scheme::HmacSha1 => Self::Hmac(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &bytes).into()),
            Scheme::Sha256 => Self::Hash,
            Scheme::Equal => Self::Equal(bytes),
            Scheme::Ed25519 => {
                let key = public(&ED25519);
                key.parse().ok()?;
                Self::Public(key)
            }
            Scheme::EcdsaP256Sha256 | Scheme::JwtEs256 => {
                let fixed = scheme == Scheme::JwtEs256;
                let key = public(if fixed { &ECDSA_P256_SHA256_FIXED } else { &ECDSA_P256_SHA256_ASN1 });
                key.parse().ok()?;
                Self::Public(key)
            }
            Scheme::RsaSha256 | Scheme::JwtRs256 => {
                let key = public(&RSA_PKCS1_2048_8192_SHA256);
                key.parse().ok()?;
                Self::Public(key)
            }
            Scheme::RsaSha1 => {
                let key = public(&RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY);
                key.parse().ok()?;
                Self::Public(key)
            }
        })
    }

    /// What the signature must be, where the verifier can know it.
    ///
    /// # Errors
    /// Those of `content`.
    pub(super) fn expected<E>(&self, content: Content<'_, E>) -> Result<Option<Vec<u8>>, E> {
        match self {
            Self::Hmac(key) => {
                let mut context = hmac::Context::with_key(key);
                content(&mut |part| context.update(part))?;
                Ok(Some(context.sign().as_ref().to_vec()))
            }
            Self::Hash => {
                let mut context = Context::new(&SHA256);
                content(&mut |part| context.update(part))?;
                Ok(Some(Digest::as_ref(&context.finish()).to_vec()))
            }
            Self::Equal(secret) => Ok(Some(secret.clone())),
            Self::Public(_) | Self::Rsa(_) => Ok(None),
        }
    }

    /// Which of the candidates are right: in constant time, where the verifier knows what must stand there.
    ///
    /// # Errors
    /// Those of `content`.
    pub(super) fn verify<E>(&self, content: Content<'_, E>, candidates: &[Vec<u8>]) -> Result<Vec<bool>, E> {
        if let Some(expected) = self.expected(content)? {
            return Ok(candidates.iter().map(|given| verify_slices_are_equal(&expected, given).is_ok()).collect());
        }
        let mut message = Vec::new();
        content(&mut |part| message.extend_from_slice(part))?;
        let verify = |signature: &Vec<u8>| match self {
            Self::Public(key) => key.verify(&message, signature).is_ok(),
            Self::Rsa(key) => key.verify(&RSA_PKCS1_2048_8192_SHA256, &message, signature).is_ok(),
            Self::Hmac(..) | Self::Hash | Self::Equal(_) => false,
        };
        Ok(candidates.iter().map(verify).collect())
    }
}

/// The public key in a PEM text, be it a certificate or the bare key, as DER that [`Key::new`] takes.
///
/// Of a certificate only the key counts: that the certificate itself is good is for whoever fetched it, over HTTPS,
/// from a host that the table allows.
pub(super) fn pem_key(text: &str) -> Option<Vec<u8>> {
    if let Ok(certificate) = CertificateDer::from_pem_slice(text.as_bytes()) {
        let certificate = webpki::EndEntityCert::try_from(&certificate).ok()?;
        return Some(certificate.subject_public_key_info().as_ref().to_vec());
    }
    SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes()).ok().map(|key| key.as_ref().to_vec())
}

/// A key that signs.
pub(super) enum SigningKey {
    Symmetric(Arc<Key>),
    Ed25519(Ed25519KeyPair),
    Ecdsa(EcdsaKeyPair),
}

impl SigningKey {
    /// The private half, as [`KeyPair::private`] holds it, or as PEM.
    pub(super) fn from_pkcs8(scheme: Scheme, text: &str) -> Option<Self> {
        let pem = || PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).ok();
        let der = lenient_base64(text).or_else(|| pem().map(|key| key.secret_pkcs8_der().to_vec()))?;
        match scheme {
            Scheme::Ed25519 => Ed25519KeyPair::from_pkcs8(&der).ok().map(Self::Ed25519),
            Scheme::EcdsaP256Sha256 => {
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &der).ok().map(Self::Ecdsa)
            }
            _ => None,
        }
    }

    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Symmetric(key) => {
                let content = |out: &mut dyn FnMut(&[u8])| -> Result<(), Infallible> {
                    out(message);
                    Ok(())
                };
                key.expected(&content).ok()?
            }
            Self::Ed25519(pair) => Some(pair.sign(message).as_ref().to_vec()),
            Self::Ecdsa(pair) => {
                pair.sign(&SystemRandom::new(), message).ok().map(|signature| signature.as_ref().to_vec())
            }
        }
    }
}

/// A secret of ours, to sign samples as a provider does.
#[derive(Debug)]
pub struct KeyPair {
    /// To be given as the secret when signing; of a pair it is PKCS #8 in base64.
    pub private: super::Secret,
    /// For the app's configuration, in the form in which the provider shows its own. Where two sides share one secret, it
    /// is that.
    pub public: String,
}

impl KeyPair {
    /// Whether its two sides differ.
    #[must_use]
    pub fn is_pair(&self) -> bool {
        self.private.expose() != self.public
    }

    /// A new one that begins with `prefix`, if a secret of this kind is shared.
    pub(super) fn shared(scheme: Scheme, form: KeyForm, encoding: Encoding, prefix: &str) -> Option<Self> {
        if !scheme.is_symmetric() || scheme.is_token() {
            return None;
        }
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes).ok()?;
        let text = match (form, encoding) {
            (KeyForm::Base64, _) => BASE64_STANDARD.encode(bytes),
            // What stands encoded in a header is a user and a password (RFC 7617).
            (_, Encoding::Base64) if scheme == Scheme::Equal => format!("relay:{}", hex(&bytes)),
            (KeyForm::Text | KeyForm::Hex | KeyForm::Sha1, _) => hex(&bytes),
        };
        let text = format!("{prefix}{text}");
        Some(Self { private: text.as_str().into(), public: text })
    }

    pub(super) fn generate(scheme: Scheme, form: KeyForm) -> Option<Self> {
        let encoding = if form == KeyForm::Hex { Encoding::Hex } else { Encoding::Base64 };
        let (private, public) = match scheme {
            Scheme::Ed25519 => {
                let pair = Ed25519KeyPair::generate().ok()?;
                (pair.to_pkcs8().ok()?.as_ref().to_vec(), pair.public_key().as_ref().to_vec())
            }
            Scheme::EcdsaP256Sha256 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).ok()?;
                let public: PublicKeyX509Der<'_> = pair.public_key().as_der().ok()?;
                (pair.to_pkcs8v1().ok()?.as_ref().to_vec(), public.as_ref().to_vec())
            }
            _ => return None,
        };
        Some(Self { private: BASE64_STANDARD.encode(private).into(), public: encoding.encode(&public) })
    }
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test case 2; RFC 2202, test case 2; FIPS 180-4's example.
    #[test]
    fn digests_are_those_of_the_standards() {
        let expected = |scheme, key: &str, content: &str| {
            let key = Key::new(scheme, key.into()).unwrap();
            let content = |out: &mut dyn FnMut(&[u8])| -> Result<(), ()> {
                out(content.as_bytes());
                Ok(())
            };
            hex(&key.expected(&content).unwrap().unwrap())
        };
        assert_eq!(
            expected(Scheme::HmacSha256, "Jefe", "what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            expected(Scheme::HmacSha1, "Jefe", "what do ya want for nothing?"),
            "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"
        );
        assert_eq!(
            expected(Scheme::Sha256, "", "abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn an_encoding_takes_back_what_it_wrote_and_nothing_else() {
        for encoding in [Encoding::Text, Encoding::Hex, Encoding::Base64, Encoding::Base64Url] {
            assert_eq!(encoding.decode(&encoding.encode(b"ab?>")).unwrap(), b"ab?>");
        }
        for (encoding, wrong) in [
            (Encoding::Hex, "AB"),
            (Encoding::Hex, "abc"),
            (Encoding::Base64, "YQ"),
            (Encoding::Base64, "YR=="),
            (Encoding::Base64Url, "YQ=="),
        ] {
            assert_eq!(encoding.decode(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_key_that_is_none_is_refused_when_it_is_read() {
        for scheme in [Scheme::Ed25519, Scheme::EcdsaP256Sha256, Scheme::RsaSha256, Scheme::JwtEs256] {
            assert!(Key::new(scheme, b"no key".to_vec()).is_none(), "{scheme:?}");
        }
        assert_eq!(pem_key("no PEM"), None);
    }
}
