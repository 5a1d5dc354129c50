//! The verdicts as a JUnit report, which CI systems show.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use scx_vsock::series::expectation::{Expectation, Verdict};

use super::named_verdicts::NamedVerdicts;
use crate::display::clean;
use crate::error_report::one_line;

/// A file that is made before the run, so that one that cannot be written is known by then.
pub struct JunitFile {
    path: PathBuf,
    file: File,
    /// The verb that the report is about.
    verb: String,
}

impl JunitFile {
    /// Makes the file.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn create(path: &Path, verb: &str) -> Result<Self> {
        let file = File::create(path).with_context(|| cannot_write(path))?;
        Ok(Self { path: path.to_owned(), file, verb: verb.to_owned() })
    }

    /// Writes the report about several runs.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write_suites<'s>(&self, suites: impl Iterator<Item = &'s JunitSuite>) -> Result<()> {
        let mut report = Report::new(format!("scx-vsock {}", self.verb));
        report.add_test_suites(suites.map(|of| of.suite.clone()));
        self.save(&report)
    }

    /// Writes the report: a case for the run and one for each expectation.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write(&self, verdicts: &[NamedVerdicts], error: Option<&anyhow::Error>) -> Result<()> {
        self.save(&report(&self.verb, verdicts, error))
    }

    fn save(&self, report: &Report) -> Result<()> {
        let text = report.to_string().context("cannot make the JUnit report")?;
        (&self.file).write_all(text.as_bytes()).with_context(|| cannot_write(&self.path))
    }
}

/// The part of a report that is about one run.
#[derive(Debug)]
pub struct JunitSuite {
    suite: TestSuite,
    /// Why the run failed.
    pub error: Option<String>,
    /// How many expectations there are.
    pub expectations: usize,
    /// Those that were not met, with their verdicts.
    pub broken: Vec<String>,
}

impl JunitSuite {
    /// Returns the part about a run of this name, which has written this report about itself. `problem` is what it could not
    /// write, such as that it was ended.
    pub fn of_run(name: &str, report: &str, problem: Option<&str>) -> Self {
        let report = Report::deserialize_from_str(report).ok();
        let cases = report.into_iter().flat_map(|report| report.test_suites).flat_map(|suite| suite.test_cases);
        let (mut runs, mut expectations): (Vec<TestCase>, Vec<TestCase>) =
            cases.partition(|case| case.classname.is_none());
        if let Some(problem) = problem {
            runs = vec![TestCase::new("boot", not_met(NonSuccessKind::Error, "error", problem))];
        }
        let error = runs.iter().find_map(message);
        let verdict = |case: &TestCase| Some(format!("{}: {}", clean(case.name.as_str()), clean(&message(case)?)));
        let broken = expectations.iter().filter_map(verdict).collect();
        let count = expectations.len();
        for case in expectations.iter_mut().chain(&mut runs) {
            case.set_classname(name);
        }
        let mut suite = TestSuite::new(name);
        suite.add_test_cases(runs.into_iter().chain(expectations));
        Self { suite, error, expectations: count, broken }
    }
}

/// What a case that did not succeed says.
fn message(case: &TestCase) -> Option<String> {
    match &case.status {
        TestCaseStatus::NonSuccess { message, .. } => {
            Some(message.as_ref().map(|text| text.as_str().to_owned()).unwrap_or_default())
        }
        _ => None,
    }
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

fn report(verb: &str, verdicts: &[NamedVerdicts], error: Option<&anyhow::Error>) -> Report {
    let mut report = Report::new(format!("scx-vsock {verb}"));
    let mut run = TestSuite::new("run");
    let status = error.map_or_else(TestCaseStatus::success, |error| {
        not_met(NonSuccessKind::Error, "error", &one_line(&format!("{error:#}")))
    });
    run.add_test_case(TestCase::new(verb, status));
    report.add_test_suite(run);
    for NamedVerdicts { name, verdicts } in verdicts.iter().filter(|of| !of.verdicts.is_empty()) {
        let mut suite = TestSuite::new(name);
        let case = |(expectation, verdict): &(Expectation, Verdict)| case(name, expectation, verdict, error.is_some());
        suite.add_test_cases(verdicts.iter().map(case));
        report.add_test_suite(suite);
    }
    report
}

fn case(guest: &str, expectation: &Expectation, verdict: &Verdict, has_failed: bool) -> TestCase {
    let status = match verdict {
        Verdict::Held { .. } => TestCaseStatus::success(),
        // The run's own case says why.
        Verdict::NoData { .. } if has_failed => TestCaseStatus::skipped(),
        other => not_met(NonSuccessKind::Failure, other.name(), &other.to_string()),
    };
    let mut case = TestCase::new(expectation.to_string(), status);
    case.set_classname(guest);
    case
}

fn not_met(kind: NonSuccessKind, name: &str, message: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(kind);
    status.set_type(name).set_message(message);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_a_case_for_the_run_and_for_each_expectation() {
        let expectations: [Expectation; 2] = ["nr <= 1".parse().unwrap(), "eventually nr > 3".parse().unwrap()];
        let held = Verdict::Held { values: 3, without: 0 };
        let named = |name: &str, verdicts| NamedVerdicts { name: name.into(), verdicts };
        let no_data = scx_vsock::SampleSeries::new().check(&expectations[1]);
        let verdicts = [
            named("g1", vec![(expectations[0].clone(), held.clone()), (expectations[1].clone(), no_data)]),
            named("g<2>", vec![(expectations[0].clone(), held)]),
        ];
        let error = anyhow::anyhow!("a \u{1b}[31m\"bad\"\nguest");
        let text = report("boot", &verdicts, Some(&error)).to_string().unwrap();
        for expected in [
            r#"<testsuites name="scx-vsock boot" tests="4" skipped="1" failures="0" errors="1">"#,
            r#"<error message="a [31m&quot;bad&quot;; guest" type="error"/>"#,
            r#"<testcase name="nr &lt;= 1" classname="g1"/>"#,
            r#"<testsuite name="g&lt;2&gt;" tests="1" skipped="0" errors="0" failures="0">"#,
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        // In a run that did not fail, what has no data is a failure.
        let text = report("boot", &verdicts, None).to_string().unwrap();
        let failure = r#"<failure message="no data: there is no sample" type="no data"/>"#;
        assert!(text.contains(failure) && text.contains(r#"skipped="0" failures="1" errors="0""#), "{text}");
        assert!(report("watch", &[], None).to_string().unwrap().contains(r#"<testcase name="watch"/>"#));
    }
}
