//! `rustmq doctor`: what this host offers a broker, what will run, and what to change.
//!
//! - `facts`: asks and measures. - `findings`: judges; pure.

mod facts;

mod findings;

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use serde_json::json;

use crate::cli::output::{TextOrJson, print};
use facts::Facts;
use findings::{Finding, Status};

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Directory in which a broker would store records
    #[arg(long, value_name = "DIR", env = "RUSTMQ_DATA_DIR", default_value = "./rustmq-data")]
    data_dir: PathBuf,
    /// For people or for programs
    #[arg(long, value_enum, default_value_t = TextOrJson::Text)]
    format: TextOrJson,
}

pub(crate) async fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let facts = Facts::gather(&args.data_dir)?;
    let findings = findings::of(&facts);
    print(match args.format {
        TextOrJson::Text => text(&facts, &findings),
        TextOrJson::Json => json(&facts, &findings),
    })
    .await?;
    let bad = findings.iter().filter(|finding| finding.status == Status::Bad);
    let subjects: Vec<_> = bad.map(|finding| finding.subject).collect();
    if !subjects.is_empty() {
        bail!("a broker cannot run safely here: {}", subjects.join(", "));
    }
    Ok(())
}

fn text(facts: &Facts, findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let Finding { subject, status, fact, advice } = finding;
        text += &format!("{:4}  {subject:14}  {fact}\n", status.word());
        if let Some(advice) = advice {
            text += &format!("{:22}→ {advice}\n", "");
        }
    }
    text + "\n" + &findings::plan(facts) + "\n"
}

fn json(facts: &Facts, findings: &[Finding]) -> String {
    let findings: Vec<_> = findings
        .iter()
        .map(|finding| {
            json!({
                "subject": finding.subject,
                "status": finding.status.word(),
                "fact": finding.fact,
                "advice": finding.advice,
            })
        })
        .collect();
    let plan = findings::plan(facts);
    json!({ "facts": facts.json(), "findings": findings, "plan": plan }).to_string() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_holds_facts_findings_and_plan() {
        let facts = facts::good();
        let json: serde_json::Value =
            serde_json::from_str(&json(&facts, &findings::of(&facts))).unwrap();
        assert_eq!(json["facts"]["io_uring"], true);
        assert_eq!(json["facts"]["durable_write_p50_us"], 95.0);
        assert_eq!(json["findings"][0]["status"], "ok");
        assert!(json["plan"].as_str().unwrap().contains("io_uring"));
    }

    #[test]
    fn advice_stands_below_what_it_is_about() {
        let mut facts = facts::good();
        facts.host.gso_segments = Some(1);
        let text = text(&facts, &findings::of(&facts));
        let line = text.lines().position(|line| line.starts_with("note  UDP send")).unwrap();
        assert!(text.lines().nth(line + 1).unwrap().contains('→'), "{text}");
    }
}
