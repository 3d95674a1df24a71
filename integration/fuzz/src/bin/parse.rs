//! Bytes as a Dockerfile.

#![no_main]

use kiln_dockerfile::{Source, Span, describe, describe_errors, parse, parse_trigger, to_text};
use serde_json::Value;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let source = Source::from_bytes("Dockerfile", bytes);
    let lies_in_text = |span: Span| source.text.get(span.start as usize..span.end as usize).is_some();
    let _ = parse_trigger(&source.text);
    match parse(&source) {
        Ok(file) => {
            for instruction in &file.instructions {
                assert!(lies_in_text(instruction.span) && lies_in_text(instruction.keyword_span));
                assert!(instruction.flags.iter().all(|flag| lies_in_text(flag.span)));
            }
            assert!(file.warnings.iter().all(|warning| lies_in_text(warning.span)));
            let printed = Source::new("Dockerfile", to_text(&file));
            let again = parse(&printed).expect("what is printed can be read");
            assert_eq!(meaning(describe(&source, &file)), meaning(describe(&printed, &again)));
        }
        Err(errors) => {
            assert!(!errors.is_empty() && errors.iter().all(|error| lies_in_text(error.span)));
            describe_errors(&source, &errors);
        }
    }
});

/// A description without places.
fn meaning(mut description: Value) -> Value {
    for instruction in description["instructions"].as_array_mut().expect("there are instructions") {
        let instruction = instruction.as_object_mut().expect("an instruction is an object");
        instruction.remove("lines");
        instruction.remove("span");
    }
    serde_json::json!([description["escape"], description["instructions"]])
}
