//! Steps that run processes, with what the client's session has for them.

use crate::client::TestDaemon;
use crate::steered::{BASE, served};
use crate::{Test, gone, processes_with, run};
use std::time::Duration;

pub const TESTS: &[Test] = &[
    ("privileged_steps_run_and_tell", tell),
    ("privileged_secrets_and_agents_come_from_the_session", keys),
    ("privileged_a_build_is_cancelled_in_the_middle", cancelled),
    ("privileged_steps_end_with_the_daemon", end_with_daemon),
];

fn tell() {
    run(async {
        let daemon = TestDaemon::start().await;
        let client = daemon.client().await;
        let dockerfile = format!(
            "{BASE}RUN echo made >/made; echo said; echo complained >&2\nFROM scratch\nCOPY --from=base /made /\n"
        );
        let (_, files) = client.build("one", served(&dockerfile), &[]).await.unwrap();
        assert_eq!(files["made"], b"made\n");
        let status = client.status("one").await;
        let logs = |stream| {
            let logs = status.iter().flat_map(|message| &message.logs).filter(|log| log.stream == stream);
            logs.map(|log| String::from_utf8_lossy(&log.msg).into_owned()).collect::<String>()
        };
        assert_eq!((logs(1).as_str(), logs(2).as_str()), ("said\n", "complained\n"));
        let failing = format!("{BASE}RUN echo last words; exit 3\n");
        let failed = client.build("two", served(&failing), &[]).await.unwrap_err();
        let expected = "process \"/bin/sh -c echo last words; exit 3\" did not complete successfully: exit code: 3";
        assert!(failed.message().contains(expected), "{failed}");
    });
}

fn keys() {
    run(async {
        let daemon = TestDaemon::start().await;
        let client = daemon.client().await;
        let dockerfile = format!(
            "{BASE}RUN --mount=type=secret,id=s --mount=type=secret,id=e,env=E --mount=type=ssh \\\n\
             cp /run/secrets/s /made; echo $E >>/made; [ -S $SSH_AUTH_SOCK ] && echo socket >>/made\n\
             FROM scratch\nCOPY --from=base /made /\n"
        );
        let mut with_keys = served(&dockerfile);
        with_keys.secrets = [("s", "hidden\n"), ("e", "variable")].map(|(id, text)| (id.into(), text.into())).into();
        with_keys.agent = Some("default".into());
        let (_, files) = client.build("one", with_keys.clone(), &[]).await.unwrap();
        assert_eq!(files["made"], b"hidden\nvariable\nsocket\n");
        // What a step was given is told to nobody.
        let told = format!("{:?}", client.status("one").await);
        assert!(!told.contains("hidden") && !told.contains("variable"));
        let required = dockerfile.replace("id=s ", "id=other,required ");
        let failed = client.build("two", served(&required), &[]).await.unwrap_err();
        assert!(failed.message().contains("secret other: not found"), "{failed}");
        let agentless = dockerfile.replace("type=ssh", "type=ssh,id=none,required");
        let failed = client.build("three", crate::client::Served { files: served(&agentless).files, ..with_keys }, &[]);
        let failed = failed.await.unwrap_err();
        assert!(failed.message().contains("none"), "{failed}");
    });
}

/// Seen to fail with the build's token not cancelled when its caller goes.
fn cancelled() {
    run(async {
        let daemon = TestDaemon::start().await;
        let client = daemon.client().await;
        let dockerfile = format!("{BASE}RUN echo begun; sleep 16180; true\nRUN echo never\n");
        let building = tokio::spawn({
            let (client, served) = (client.clone(), served(&dockerfile));
            async move { client.build("one", served, &[]).await }
        });
        while processes_with("16180") == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        building.abort();
        gone("16180").await;
        let told = client.status("one").await;
        let vertices: Vec<_> = told.iter().flat_map(|message| &message.vertexes).collect();
        assert!(vertices.iter().any(|vertex| vertex.name.contains("sleep 16180") && !vertex.error.is_empty()));
        assert!(!vertices.iter().any(|vertex| vertex.name.contains("echo never") && vertex.started.is_some()));
        // What was done before is done, and the daemon goes on.
        let shorter = format!("{BASE}RUN echo begun >/made\nFROM scratch\nCOPY --from=base /made /\n");
        let (_, files) = client.build("two", served(&shorter), &[]).await.unwrap();
        assert_eq!(files["made"], b"begun\n");
        let again = client.status("two").await;
        let cached = again.iter().flat_map(|message| &message.vertexes).filter(|vertex| vertex.cached);
        assert!(cached.count() >= 2);
    });
}

fn end_with_daemon() {
    run(async {
        let daemon = TestDaemon::start().await;
        let client = daemon.client().await;
        let dockerfile = format!("{BASE}RUN sleep 14142; true\n");
        let building = tokio::spawn(async move { client.build("one", served(&dockerfile), &[]).await });
        while processes_with("14142") == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        daemon.stop().await.unwrap();
        gone("14142").await;
        assert!(building.await.unwrap().is_err());
    });
}
