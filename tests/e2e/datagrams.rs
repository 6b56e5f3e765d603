//! How large datagrams get: what each profile of the network reaches, and that one which does not fit
//! costs no connection.

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustmq_client::{Client, ClientConfig, MtuProfile, NewTopic, ProducerRecord, Start};

use crate::support::broker::{Backend, Broker, Node, clear_environment, on_each_backend};
use crate::support::hosts::{BROKER, Hosts, can_make_hosts};
use crate::support::{client, machine};

/// Enough of both to fill many datagrams of any size.
const RECORDS: usize = 64;
const VALUE_BYTES: usize = 50_000;

/// The search for the largest datagram ends when it is known this closely.
const SEARCH_ENDS_BYTES: u64 = 20;

on_each_backend! {
    fn each_profile_produces_consumes_and_reaches_its_size(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        for (broker_profile, client_profile, reached) in [
            ("internet", MtuProfile::Internet, 1452),
            ("datacentre", MtuProfile::Datacentre, 8952),
            ("loopback", MtuProfile::Loopback, 65_507),
            // The one finds out no more than the other takes.
            ("loopback", MtuProfile::Internet, 1472),
            ("internet", MtuProfile::Loopback, 1452),
        ] {
            let node = Node::new(backend)?.set("network.mtu_profile", broker_profile);
            let broker = node.start()?;
            client::runtime()?
                .block_on(async {
                    let mut config = ClientConfig::from_dev_dir(node.data_dir())?;
                    config.mtu_profile = client_profile;
                    let client = client::bounded("a client", Client::connect(config)).await??;
                    produce_and_consume(&client).await?;
                    client::bounded("the size", until_reached(&broker, &client, reached)).await??;
                    client.close().await;
                    anyhow::Ok(())
                })
                .with_context(|| format!("{broker_profile} and {client_profile:?}"))?;
            broker.stop()?;
        }
        Ok(())
    }
}

/// Asks until the broker has found out how much the path takes: it tries while there is traffic.
async fn until_reached(broker: &Broker, client: &Client, reached: u64) -> Result<()> {
    loop {
        client.describe_topic("sizes").await?;
        let found = broker.metric("rustmq_path_mtu_bytes")?;
        ensure!(found <= reached, "{found} bytes, more than {reached}");
        if reached < found + SEARCH_ENDS_BYTES {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn produce_and_consume(client: &Client) -> Result<()> {
    client::bounded("a topic", client.create_topic(NewTopic::new("sizes", 1))).await??;
    let producer = client::bounded("a producer", client.producer("sizes").build()).await??;
    let mut tickets = Vec::new();
    for number in 0..RECORDS {
        tickets.push(producer.submit(ProducerRecord::value(value(number))).await?);
    }
    for ticket in tickets {
        client::bounded("an acknowledgement", ticket).await??;
    }
    let consumer = client.consumer("sizes").start(Start::Earliest);
    let mut consumer = client::bounded("a consumer", consumer.build()).await??;
    for number in 0..RECORDS {
        let record =
            client::bounded("a record", consumer.receive()).await?.context("the end")??;
        ensure!(record.value.as_deref() == Some(value(number).as_bytes()), "record {number}");
    }
    Ok(())
}

fn value(number: usize) -> String {
    format!("{number:05}").repeat(VALUE_BYTES / 5)
}

on_each_backend! {
    /// Over a cable that takes 1,500 bytes.
    fn a_profile_that_the_path_does_not_take_costs_no_connection(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        if !can_make_hosts("datagrams::a_profile_that_the_path_does_not_take") {
            return Ok(());
        }
        for profile in ["datacentre", "loopback"] {
            let hosts = Hosts::new(&format!("mtu-{}", backend.name()))?;
            let node = Node::new(backend)?
                .set("broker.listen", BROKER)
                .set("network.mtu_profile", profile)
                .on_port(9092);
            let mut broker = node.launch_by(hosts.on_broker(&node.command()))?;
            broker.until_ready()?;
            let scratch = machine::scratch_dir("sizes-")?;
            let lines = scratch.path().join("lines");
            let sent: String = (0..RECORDS).map(|number| value(number) + "\n").collect();
            std::fs::write(&lines, &sent)?;
            let run = |arguments: &[&str]| -> Result<Vec<u8>> {
                let mut command = Command::new(machine::executable());
                clear_environment(&mut command);
                command.args(arguments).env("RUSTMQ_MTU_PROFILE", profile);
                command.env("RUSTMQ_DATA_DIR", node.data_dir());
                let mut command = hosts.on_client(&command);
                let output = command.stdin(File::open(&lines)?).output()?;
                let said = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.success(), "{profile}: {arguments:?}: {said}");
                Ok(output.stdout)
            };
            run(&["topic", "create", "sizes"])?;
            run(&["produce", "sizes"])?;
            let read = run(&["consume", "sizes", "--from", "start", "--until-end"])?;
            ensure!(read == sent.as_bytes(), "{profile}: other records came");
            broker.stop()?;
        }
        Ok(())
    }
}
