#!/usr/bin/env ruby
# Prints values as GitLab encrypts them, for the tests beside this file: values.rb > values.json
# What is random in GitLab is fixed here, so that the output is the same each time.
require 'openssl'
require 'base64'
require 'digest'
require 'json'

BASE = 'c0ffee' * 21 + '42'
OTP = '0ddba11' * 18 + '99'
PRIMARY = 'primary-key-of-thirty-two-bytes!'
SALT = 'salt-of-derivation'

def encrypt(name, key, iv, text)
  cipher = OpenSSL::Cipher.new(name).encrypt
  cipher.key = key
  cipher.iv = iv
  cipher.auth_data = '' if cipher.authenticated?
  value = cipher.update(text) + cipher.final
  cipher.authenticated? ? [value, cipher.auth_tag] : [value, '']
end

# attr_encrypted, `mode: :per_attribute_iv`.
def attribute(name, key, text)
  iv = Digest::SHA256.digest(text)[0, OpenSSL::Cipher.new(name).iv_len]
  [encrypt(name, key, iv, text).join, iv]
end

# attr_encrypted, `mode: :per_attribute_iv_and_salt`; all but the salt as `per_attribute_iv`.
def salted(base, text)
  salt = Digest::SHA256.digest("salt of #{text}")[0, 16]
  key = OpenSSL::PKCS5.pbkdf2_hmac_sha1(base, salt, 2000, 32)
  value, iv = attribute('aes-256-cbc', key, text)
  { value: [value].pack('m'), iv: [iv].pack('m'), salt: '_' + [salt].pack('m') }
end

def encoded(value, iv)
  { value: [value].pack('m'), iv: [iv].pack('m') }
end

def bytes(value, iv)
  { value: '\x' + value.unpack1('H*'), iv: '\x' + iv.unpack1('H*') }
end

# Gitlab::CryptoHelper, with the nonce of all and with one of its own.
def token(text, nonce)
  Base64.strict_encode64(encrypt('aes-256-gcm', BASE[0, 32], nonce, text).join)
end

# ActiveRecord::Encryption.
def record(text, digest)
  key = OpenSSL::KDF.pbkdf2_hmac(PRIMARY, salt: SALT, iterations: 2**16, length: 32, hash: digest)
  iv = Digest::SHA256.digest(text)[0, 12]
  value, tag = encrypt('aes-256-gcm', key, iv, text)
  { p: Base64.strict_encode64(value),
    h: { iv: Base64.strict_encode64(iv), at: Base64.strict_encode64(tag) } }
end

key = BASE[0, 32]
nonce = Digest::SHA256.hexdigest('glrt-own')[0, 12]
long = 'a text of several lines of base64 ' * 4
puts JSON.pretty_generate(
  keys: {
    db_key_base: BASE,
    otp_key_base: OTP,
    active_record_encryption_primary_key: ['an older key', PRIMARY],
    active_record_encryption_deterministic_key: ['another key'],
    active_record_encryption_key_derivation_salt: SALT
  },
  attributes: {
    gcm: encoded(*attribute('aes-256-gcm', key, long)),
    gcm_bytes: bytes(*attribute('aes-256-gcm', key, 'a signing key')),
    cbc: encoded(*attribute('aes-256-cbc', key, 'an old secret')),
    cbc_bytes: bytes(*attribute('aes-256-cbc', key, 'an old secret in bytes')),
    salted: salted(BASE, 'a variable'),
    salted_object: salted(BASE, Marshal.dump({ user: 'mirror', password: "pass\u00e9" })),
    otp_secret: salted(OTP, 'ABCDEFGHIJKLMNOP')
  },
  tokens: {
    shared_nonce: token('glrt-shared', BASE[0, 12]),
    own_nonce: "|#{token('glrt-own', nonce)}#{nonce}"
  },
  records: {
    sha256: record('a key of Rails 7.1', 'SHA256'),
    sha1: record('a key of Rails 7.0', 'SHA1')
  }
)
