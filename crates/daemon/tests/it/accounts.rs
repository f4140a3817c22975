//! Private images of clients with and without credentials.

use crate::account::{Account, PASSWORD, Tokens, USER};
use crate::client::{Served, TestDaemon};
use forge_testkit::{ImageBuilder, TestRegistry};
use std::sync::{Arc, Mutex};
use tonic::Status;

/// A daemon, and a registry with an image that is not for everyone.
struct Case {
    daemon: TestDaemon,
    registry: Arc<TestRegistry>,
    count: Mutex<u32>,
}

impl Case {
    async fn start(registry: TestRegistry) -> Self {
        ImageBuilder::small("x").put(&registry, "a", "latest");
        Self { daemon: TestDaemon::start_online().await, registry: Arc::new(registry), count: Mutex::default() }
    }

    /// Builds from the image; gives what the client was asked for.
    async fn build(&self, tokens: Tokens) -> Result<Vec<String>, Status> {
        let number = {
            let mut count = self.count.lock().unwrap();
            *count += 1;
            *count
        };
        let account = Account { registry: Some(self.registry.clone()), tokens, asked: Arc::default() };
        let dockerfile = format!("FROM {}/a\nCOPY a /\n", self.registry.authority());
        let served = Served::context("dockerfile", &[("Dockerfile", &dockerfile)]).and("context", &[("a", "text")]);
        let served = Served { account: Some(account.clone()), ..served };
        let options = [("image-resolve-mode", "pull")];
        self.daemon.client().await.build(&format!("build-{number}"), served, &options).await?;
        let mut asked = account.asked.lock().unwrap().clone();
        let origin = self.registry.origin();
        asked.iter_mut().for_each(|line| *line = line.replace(&origin, "").replace(self.registry.authority(), "host"));
        Ok(asked)
    }
}

const TOKEN: &str = "token /token test repository:a:pull";

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_fetch_tokens_are_not_asked_for_credentials() {
    let case = Case::start(TestRegistry::builder().bearer(USER, PASSWORD).start()).await;
    assert_eq!(case.build(Tokens::Own).await.unwrap(), [TOKEN]);
    // Each for itself.
    assert_eq!(case.build(Tokens::Own).await.unwrap(), [TOKEN]);
    assert!(!case.registry.received().iter().any(|request| request.path == "/token"));
    assert_eq!(case.build(Tokens::Never).await.unwrap(), [TOKEN, "credentials host"]);
    assert_eq!(case.build(Tokens::Forbidden).await.unwrap(), ["credentials host"]);
    let refused = case.build(Tokens::Refused(1)).await.unwrap_err();
    assert!(refused.message().contains("failed to fetch oauth token: 401"), "{refused}");
    case.daemon.stop().await.unwrap();
}

// Seen to fail where whoever shows a key is believed without a signature.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_shared_by_those_who_show_the_same_credentials() {
    let case = Case::start(TestRegistry::builder().bearer(USER, PASSWORD).start()).await;
    assert_eq!(case.build(Tokens::Shared(1, 1)).await.unwrap(), [TOKEN]);
    assert_eq!(case.build(Tokens::Shared(1, 1)).await.unwrap(), ["signature"]);
    // Who shows the key of another and cannot sign with it gets none of its tokens.
    assert_eq!(case.build(Tokens::Shared(1, 2)).await.unwrap(), ["signature", TOKEN]);
    assert_eq!(case.build(Tokens::Shared(2, 2)).await.unwrap(), [TOKEN]);
    case.build(Tokens::Refused(3)).await.unwrap_err();
    // One that the registry does not take any more makes place for another one.
    case.registry.revoke_tokens();
    assert_eq!(case.build(Tokens::Shared(1, 1)).await.unwrap(), ["signature", TOKEN]);
    assert_eq!(case.build(Tokens::Shared(1, 1)).await.unwrap(), ["signature"]);
    case.daemon.stop().await.unwrap();
}

// Seen to fail with the owner left out of the registry client's keys.
#[tokio::test(flavor = "multi_thread")]
async fn one_clients_credentials_do_not_serve_another() {
    for registry in [TestRegistry::builder().bearer(USER, PASSWORD), TestRegistry::builder().basic(USER, PASSWORD)] {
        let case = Case::start(registry.start()).await;
        assert!(case.build(Tokens::Never).await.unwrap().contains(&"credentials host".to_owned()));
        let dockerfile = format!("FROM {}/a\nCOPY a /\n", case.registry.authority());
        let served = Served::context("dockerfile", &[("Dockerfile", &dockerfile)]).and("context", &[("a", "text")]);
        let options = [("image-resolve-mode", "pull")];
        let error = case.daemon.client().await.build("stranger", served, &options).await.unwrap_err();
        assert!(error.message().contains("refuses access"), "{error}");
        case.daemon.stop().await.unwrap();
    }
}
