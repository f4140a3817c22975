//! An SSH agent inside this process, for keys that a build is given as files.
//!
//! It answers what steps may ask: the list of keys, and signatures (draft-miller-ssh-agent). The keys never leave it.

use crate::private_key::{PrivateKey, Reader, string};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGNED: u8 = 14;
/// OpenSSH's own limit.
const MESSAGE_BYTES: u32 = 256 << 10;

/// Keys that can be signed with.
#[derive(Clone)]
pub(crate) struct KeyAgent(Arc<[PrivateKey]>);

impl KeyAgent {
    pub(crate) fn new(keys: Vec<PrivateKey>) -> Self {
        Self(keys.into())
    }

    /// A connection to the agent; it is served until the other side closes it.
    pub(crate) fn connect(&self) -> std::io::Result<OwnedFd> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let (ours, agent) = (UnixStream::from_std(ours)?, self.clone());
        tokio::spawn(async move {
            // A connection that fails is the client's to notice: it reads the end of the stream.
            let _ = agent.serve(ours).await;
        });
        Ok(theirs.into())
    }

    async fn serve(&self, mut client: UnixStream) -> std::io::Result<()> {
        loop {
            let length = match client.read_u32().await? {
                length @ 1..=MESSAGE_BYTES => length,
                _ => return Err(std::io::ErrorKind::InvalidData.into()),
            };
            let mut request = vec![0; length as usize];
            client.read_exact(&mut request).await?;
            // Signing with RSA takes milliseconds.
            let agent = self.clone();
            let answer = tokio::task::spawn_blocking(move || agent.answer(&request)).await?;
            client.write_all(&string(&answer)).await?;
        }
    }

    fn answer(&self, request: &[u8]) -> Vec<u8> {
        let answer = match request.split_first() {
            Some((&REQUEST_IDENTITIES, _)) => Some(self.identities()),
            Some((&SIGN_REQUEST, request)) => self.signed(Reader(request)),
            _ => None,
        };
        answer.unwrap_or_else(|| vec![FAILURE])
    }

    fn identities(&self) -> Vec<u8> {
        let count = u32::try_from(self.0.len()).expect("nobody names so many files");
        let keys = self.0.iter().map(|key| [string(&key.public), string(&key.comment)].concat());
        [vec![IDENTITIES], count.to_be_bytes().to_vec(), keys.collect::<Vec<_>>().concat()].concat()
    }

    /// With the key that the request names, if it is one of ours.
    fn signed(&self, mut request: Reader<'_>) -> Option<Vec<u8>> {
        let (public, data, flags) = (request.string()?, request.string()?, request.word()?);
        let key = self.0.iter().find(|key| key.public == public)?;
        Some([vec![SIGNED], string(&key.sign(data, flags)?)].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::private_key::KeyError;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output};

    /// OpenSSH's programs say whether keys and signatures are right; `None` where there are none.
    fn ssh_keygen(arguments: &[&str]) -> Option<Output> {
        Command::new("ssh-keygen").args(arguments).output().ok()
    }

    fn made(folder: &Path, name: &str, arguments: &[&str]) -> PathBuf {
        let path = folder.join(name);
        let shown = path.to_str().unwrap();
        let made = ssh_keygen(&[&["-q", "-C", name, "-f", shown], arguments].concat()).unwrap();
        assert!(made.status.success(), "{made:?}");
        path
    }

    /// Hands connections of a socket on to the agent, as a step's relay does.
    fn listen(agent: &KeyAgent, socket: &Path) {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let agent = agent.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let ours = StdStream::from(agent.connect().unwrap());
                ours.set_nonblocking(true).unwrap();
                let mut ours = UnixStream::from_std(ours).unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut ours).await });
            }
        });
    }

    async fn run(mut command: Command) -> Output {
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn openssh_believes_the_signatures() {
        if ssh_keygen(&[]).is_none() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let kinds: [(&str, &[&str]); 8] = [
            ("ed25519", &["-t", "ed25519"]),
            ("p256", &["-t", "ecdsa", "-b", "256"]),
            ("p384", &["-t", "ecdsa", "-b", "384"]),
            ("rsa", &["-t", "rsa", "-b", "2048"]),
            ("p256-sec1", &["-t", "ecdsa", "-b", "256", "-m", "PEM"]),
            ("p384-pkcs8", &["-t", "ecdsa", "-b", "384", "-m", "PKCS8"]),
            ("rsa-pkcs1", &["-t", "rsa", "-b", "2048", "-m", "PEM"]),
            ("rsa-pkcs8", &["-t", "rsa", "-b", "2048", "-m", "PKCS8"]),
        ];
        let files = kinds.map(|(name, arguments)| made(folder.path(), name, &[arguments, &["-N", ""]].concat()));
        let read = |path: &PathBuf| PrivateKey::parse(&std::fs::read(path).unwrap()).unwrap();
        let agent = KeyAgent::new(files.iter().map(read).collect());
        let socket = folder.path().join("agent");
        listen(&agent, &socket);

        let mut list = Command::new("ssh-add");
        list.arg("-L").env("SSH_AUTH_SOCK", &socket);
        let listed = String::from_utf8(run(list).await.stdout).unwrap();
        let listed: Vec<String> = listed.lines().map(str::to_owned).collect();
        assert_eq!(listed.len(), files.len());
        for (file, listed) in files.iter().zip(&listed) {
            let public = std::fs::read_to_string(file.with_extension("pub")).unwrap();
            let words = |text: &str| text.split(' ').take(2).map(|word| word.trim().to_owned()).collect::<Vec<_>>();
            assert_eq!(words(listed), words(&public), "{file:?}");
            // The comment stands in OpenSSH's own format alone.
            if !file.to_str().unwrap().contains("-pkcs") && !file.ends_with("p256-sec1") {
                assert_eq!(listed, public.trim());
            }
            let signers = folder.path().join("signers");
            std::fs::write(&signers, format!("me {public}")).unwrap();
            let text = folder.path().join("text");
            std::fs::write(&text, "what is signed").unwrap();
            let mut sign = Command::new("ssh-keygen");
            sign.args(["-Y", "sign", "-n", "test", "-f"]).arg(file.with_extension("pub")).arg(&text);
            // Without its file only the agent has the key.
            let hidden = folder.path().join("hidden");
            std::fs::rename(file, &hidden).unwrap();
            sign.env("SSH_AUTH_SOCK", &socket);
            let signed = run(sign).await;
            std::fs::rename(&hidden, file).unwrap();
            assert!(signed.status.success(), "{file:?}: {signed:?}");
            let mut verify = Command::new("ssh-keygen");
            verify.args(["-Y", "verify", "-n", "test", "-I", "me", "-f"]).arg(&signers);
            verify.arg("-s").arg(folder.path().join("text.sig")).stdin(std::fs::File::open(&text).unwrap());
            let verified = run(verify).await;
            assert!(verified.status.success(), "{file:?}: {verified:?}");
            std::fs::remove_file(folder.path().join("text.sig")).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        let told = |text: &[u8]| PrivateKey::parse(text).err().unwrap();
        assert_eq!(told(b""), KeyError::NoKey);
        assert_eq!(told(b"-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n"), KeyError::Damaged);
        assert_eq!(told(b"-----BEGIN RSA PRIVATE KEY-----\nAAAA\n"), KeyError::Damaged);
        assert_eq!(
            told(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n-----END ENCRYPTED PRIVATE KEY-----"),
            KeyError::Passphrase
        );
        assert!(matches!(
            told(b"-----BEGIN DSA PRIVATE KEY-----\n-----END DSA PRIVATE KEY-----"),
            KeyError::Unsupported { .. }
        ));
        if ssh_keygen(&[]).is_none() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let refused =
            |name: &str, arguments: &[&str]| told(&std::fs::read(made(folder.path(), name, arguments)).unwrap());
        assert_eq!(refused("locked", &["-t", "ed25519", "-N", "geheim"]), KeyError::Passphrase);
        assert_eq!(refused("pem", &["-t", "rsa", "-m", "PEM", "-N", "geheim"]), KeyError::Passphrase);
        let large = refused("p521", &["-t", "ecdsa", "-b", "521", "-N", ""]);
        assert_eq!(large.to_string(), "keys on the curve nistp521 are not supported");
        // No part of a file makes it fail otherwise than by an error.
        let whole = std::fs::read(made(folder.path(), "whole", &["-t", "rsa", "-N", ""])).unwrap();
        for at in (30..whole.len()).step_by(61) {
            let mut changed = whole.clone();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let _ = PrivateKey::parse(&changed);
            let _ = PrivateKey::parse(&whole[..at]);
        }
    }

    #[test]
    fn only_the_keys_that_are_there_sign() {
        let agent = KeyAgent::new(Vec::new());
        assert_eq!(agent.answer(&[REQUEST_IDENTITIES]), [IDENTITIES, 0, 0, 0, 0]);
        for request in [&[][..], &[SIGN_REQUEST], &[SIGN_REQUEST, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], &[17], &[255]] {
            assert_eq!(agent.answer(request), [FAILURE]);
        }
    }
}
