//! Tests whether the keys of a Rails application decrypt the values in its database.
//!
//! | form | stored as | cipher | key |
//! |---|---|---|---|
//! | attribute, nonce of 12 bytes | base64 or raw, tag at the end | AES-256-GCM | 32 bytes of the base |
//! | attribute, IV of 16 bytes | base64 or raw | AES-256-CBC | 32 bytes of the base |
//! | attribute with a salt | the same | the same | PBKDF2-SHA1 of the base, 2000 rounds |
//! | token | base64, or `\|`, base64, nonce | AES-256-GCM | 32 bytes of the base |
//! | record | JSON of payload, IV and tag | AES-256-GCM | PBKDF2 of the primary key, 65536 rounds |
//!
//! A tag proves a key. A CBC value has only its padding and the shape of its text, which a wrong key
//! meets once in some hundred values.

use crate::service::Password;
use aes::Aes256;
use aes_gcm::aead::{Aead, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use cbc::cipher::{BlockDecryptMut, KeyIvInit, block_padding::Pkcs7};
use pbkdf2::pbkdf2_hmac;
use serde_json::Value;
use sha1::Sha1;
use sha2::Sha256;
use std::collections::BTreeMap;

/// Name of the key of attributes and tokens.
pub const DB_KEY: &str = "db_key_base";
/// Name of the key of the second factor.
const OTP_KEY: &str = "otp_key_base";
/// Name of the keys of records.
const RECORD_KEY: &str = "active_record_encryption_primary_key";
/// Name of the keys of records that can be searched.
const SEARCHABLE_KEY: &str = "active_record_encryption_deterministic_key";
/// Name of the salt of both.
const SALT: &str = "active_record_encryption_key_derivation_salt";

/// Names of all keys.
pub const NAMES: [&str; 7] = [
    DB_KEY,
    "secret_key_base",
    OTP_KEY,
    "encrypted_settings_key_base",
    RECORD_KEY,
    SEARCHABLE_KEY,
    SALT,
];

/// Returns the name of a key that an installation has under a longer name.
pub fn known_name(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase();
    NAMES.into_iter().find(|known| name.ends_with(known))
}

/// Bytes of a nonce of GCM.
const NONCE: usize = 12;
/// Bytes of a tag of GCM.
const TAG: usize = 16;
/// Bytes of an initialization vector of CBC.
const IV: usize = 16;
/// Bytes of a key.
const KEY: usize = 32;
/// Rounds for attributes with a salt.
const ATTRIBUTE_ROUNDS: u32 = 2000;
/// Rounds for keys of records.
const RECORD_ROUNDS: u32 = 1 << 16;
/// Keys of records of each kind that are tried; each costs a derivation.
const RECORD_KEYS_MAX: usize = 8;
/// Stands before a token that has its nonce at its end.
const OWN_NONCE: char = '|';
/// Stands before a salt in base64.
const ENCODED_SALT: char = '_';

/// Line breaks within base64 are removed before.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// An encrypted value of a database.
#[derive(Clone, PartialEq, Eq)]
pub struct Encrypted {
    /// Table and column of the value.
    pub column: String,
    /// Form of the value in the database.
    pub form: Form,
}

impl std::fmt::Debug for Encrypted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encrypted").field("column", &self.column).finish_non_exhaustive()
    }
}

/// Form of an encrypted value. Texts are as the database prints them: bytes as `\x…`.
#[derive(Clone, PartialEq, Eq)]
pub enum Form {
    /// A column with others for its vector and perhaps its salt.
    Attribute {
        /// The value, with its tag at the end.
        value: String,
        /// Initialization vector.
        iv: String,
        /// The salt of its key.
        salt: Option<String>,
    },
    /// A column by itself.
    Token(String),
    /// An object in JSON.
    Record(Value),
}

/// The keys of an application.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    db: Vec<Password>,
    otp: Vec<Password>,
    /// Keys of records.
    records: Vec<Password>,
    /// Keys of records that can be searched.
    searchable: Vec<Password>,
    salt: Option<Password>,
    /// Names of all keys that are there.
    names: Vec<&'static str>,
}

/// Returns one or several keys, newest last.
pub fn keys_of(value: &Value) -> Vec<Password> {
    let all = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let keys = all.iter().filter_map(Value::as_str).filter(|key| !key.is_empty());
    keys.map(|key| Password(key.to_owned())).collect()
}

impl Keys {
    /// The keys in an object with their names.
    pub fn of(secrets: &Value) -> Keys {
        let keys = |name: &str| keys_of(&secrets[name]);
        let newest = |name: &str| keys(name).into_iter().rev().take(RECORD_KEYS_MAX).collect();
        Keys {
            db: keys(DB_KEY),
            otp: keys(OTP_KEY),
            records: newest(RECORD_KEY),
            searchable: newest(SEARCHABLE_KEY),
            salt: keys(SALT).pop(),
            names: NAMES.into_iter().filter(|name| !keys(name).is_empty()).collect(),
        }
    }

    /// Tries all values whose form and key are known.
    pub fn attempt(&self, values: &[Encrypted]) -> Trial {
        let mut records = None;
        let mut searchable = None;
        let mut trial = Trial::default();
        for Encrypted { column, form } in values {
            let (name, opens) = match form {
                Form::Record(record) => {
                    let keys = records.get_or_insert_with(|| self.derived(&self.records));
                    match opens_record(record, keys) {
                        Some(true) => (RECORD_KEY, Some(true)),
                        opens => {
                            let derive = || self.derived(&self.searchable);
                            let keys = searchable.get_or_insert_with(derive);
                            match opens_record(record, keys) {
                                Some(true) => (SEARCHABLE_KEY, Some(true)),
                                other => (RECORD_KEY, opens.or(other)),
                            }
                        }
                    }
                }
                Form::Attribute { .. } if column.contains("otp_secret") => {
                    (OTP_KEY, any_opens(form, &self.otp))
                }
                form => (DB_KEY, any_opens(form, &self.db)),
            };
            let Some(opens) = opens else {
                trial.untried += 1;
                continue;
            };
            let tried = trial.keys.entry(name).or_default();
            tried.count += 1;
            if !opens {
                tried.failed += 1;
                if !tried.columns.contains(column) {
                    tried.columns.push(column.clone());
                }
            }
        }
        trial
    }

    /// Rails has derived them with either hash.
    fn derived(&self, keys: &[Password]) -> Vec<[u8; KEY]> {
        let Some(Password(salt)) = &self.salt else { return Vec::new() };
        let derive = |Password(key): &Password| {
            let (mut new, mut old) = ([0; KEY], [0; KEY]);
            pbkdf2_hmac::<Sha256>(key.as_bytes(), salt.as_bytes(), RECORD_ROUNDS, &mut new);
            pbkdf2_hmac::<Sha1>(key.as_bytes(), salt.as_bytes(), RECORD_ROUNDS, &mut old);
            [new, old]
        };
        keys.iter().flat_map(derive).collect()
    }

    /// Returns the names of the keys that are there and that no value has tried.
    pub fn untried(&self, trial: &Trial) -> Vec<&'static str> {
        let is_tried = |name: &str| match name {
            SALT => [RECORD_KEY, SEARCHABLE_KEY].iter().any(|key| trial.keys.contains_key(key)),
            name => trial.keys.contains_key(name),
        };
        self.names.iter().copied().filter(|name| !is_tried(name)).collect()
    }
}

/// Result of trying all keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Trial {
    /// Results by key name.
    pub keys: BTreeMap<&'static str, Tried>,
    /// Values of unknown form, or without a key.
    pub untried: usize,
}

impl Trial {
    /// Returns true if values tried a key and all of them were decrypted.
    pub fn has_proved(&self, name: &str) -> bool {
        let is_right = |name| {
            self.keys.get(name).is_some_and(|tried: &Tried| tried.count > 0 && tried.failed == 0)
        };
        match name {
            SALT => is_right(RECORD_KEY) || is_right(SEARCHABLE_KEY),
            name => is_right(name),
        }
    }
}

/// Result of trying one key.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// Values that were tried.
    pub count: usize,
    /// Values that it did not decrypt.
    pub failed: usize,
    /// Columns of those.
    pub columns: Vec<String>,
}

impl Tried {
    /// Returns true if it is the wrong key. Some values may be of an older one that is lost.
    pub fn is_wrong(&self) -> bool {
        self.failed > 0 && self.failed * 2 >= self.count
    }
}

/// Returns true if one of several key bases decrypts a value; `None` if its form is unknown or there
/// is no key.
fn any_opens(form: &Form, bases: &[Password]) -> Option<bool> {
    bases.iter().filter_map(|Password(base)| opens(form, base)).reduce(|any, opens| any || opens)
}

/// Returns true if a key base decrypts a value; `None` if its form is unknown.
fn opens(form: &Form, base: &str) -> Option<bool> {
    match form {
        Form::Token(token) => {
            let own = token.strip_prefix(OWN_NONCE).filter(|rest| rest.len() > NONCE);
            let (text, nonce) = match own {
                Some(rest) => {
                    let at = rest.len() - NONCE;
                    (rest.get(..at)?, rest.get(at..)?.as_bytes().to_vec())
                }
                None => (token.as_str(), fitted(base, NONCE)),
            };
            let value = base64(text.as_bytes())?;
            (value.len() >= TAG).then(|| opens_gcm(&fitted(base, KEY), &nonce, &value))
        }
        Form::Attribute { value, iv, salt } => {
            let iv = stored(iv, |bytes| [NONCE, IV].contains(&bytes.len()))?;
            let key = match salt.as_deref().filter(|salt| !salt.is_empty()) {
                None => fitted(base, KEY),
                Some(salt) => {
                    let salt = match salt.strip_prefix(ENCODED_SALT) {
                        Some(encoded) => base64(encoded.as_bytes())?,
                        None => raw(salt),
                    };
                    let mut key = vec![0; KEY];
                    pbkdf2_hmac::<Sha1>(base.as_bytes(), &salt, ATTRIBUTE_ROUNDS, &mut key);
                    key
                }
            };
            if iv.len() == NONCE {
                let value = stored(value, |bytes| bytes.len() >= TAG)?;
                // Raw bytes may be base64 themselves.
                let inner = base64(&value).filter(|inner| inner.len() >= TAG);
                let all = [Some(value), inner];
                return Some(all.iter().flatten().any(|value| opens_gcm(&key, &iv, value)));
            }
            let is_whole = |bytes: &[u8]| !bytes.is_empty() && bytes.len().is_multiple_of(IV);
            let value = stored(value, is_whole)?;
            Some(opens_cbc(&key, &iv, &value))
        }
        Form::Record(_) => None,
    }
}

fn opens_record(record: &Value, keys: &[[u8; KEY]]) -> Option<bool> {
    // A column of JSON may hold the text of an object.
    let inner: Value = match record {
        Value::String(text) => serde_json::from_str(text).ok()?,
        object => object.clone(),
    };
    let bytes = |value: &Value| base64(value.as_str()?.as_bytes());
    let (mut value, iv) = (bytes(&inner["p"])?, bytes(&inner["h"]["iv"])?);
    let tag = bytes(&inner["h"]["at"])?;
    if keys.is_empty() || iv.len() != NONCE || tag.len() != TAG {
        return None;
    }
    value.extend(tag);
    Some(keys.iter().any(|key| opens_gcm(key, &iv, &value)))
}

/// Returns true if the tag at the end of a value is right.
fn opens_gcm(key: &[u8], nonce: &[u8], value: &[u8]) -> bool {
    let Ok(cipher) = Aes256Gcm::new_from_slice(key) else { return false };
    nonce.len() == NONCE && cipher.decrypt(Nonce::from_slice(nonce), value).is_ok()
}

/// Returns true if padding and text are right: a text, or an object of Ruby.
fn opens_cbc(key: &[u8], iv: &[u8], value: &[u8]) -> bool {
    let Ok(cipher) = cbc::Decryptor::<Aes256>::new_from_slices(key, iv) else { return false };
    let Ok(text) = cipher.decrypt_padded_vec_mut::<Pkcs7>(value) else { return false };
    text.starts_with(b"\x04\x08") || std::str::from_utf8(&text).is_ok()
}

/// The beginning of a key base in whole characters, filled up with zeros, as GitLab cuts it.
fn fitted(base: &str, length: usize) -> Vec<u8> {
    let end = (0..=length.min(base.len())).rev().find(|at| base.is_char_boundary(*at));
    let mut bytes = base.as_bytes()[..end.unwrap_or(0)].to_vec();
    bytes.resize(length, b'0');
    bytes
}

/// Bytes that a column holds as they are or in base64; `None` if neither is right.
fn stored(text: &str, is_right: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    let bytes = raw(text);
    if text.starts_with("\\x") && is_right(&bytes) {
        return Some(bytes);
    }
    base64(&bytes).filter(|bytes| is_right(bytes))
}

/// The bytes of a column as the database prints them.
fn raw(text: &str) -> Vec<u8> {
    let hex = |digits: &str| {
        let digit = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
        (0..digits.len()).step_by(2).map(digit).collect::<Option<Vec<u8>>>()
    };
    text.strip_prefix("\\x").and_then(hex).unwrap_or_else(|| text.as_bytes().to_vec())
}

fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let text: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    BASE64.decode(text).ok()
}

#[cfg(test)]
mod tests;
