//! Keys by content. A recipe's key says how everything was made that a step stands on. Once a stage has run, what was read
//! of it is known, and can be said instead: then a result is found although its recipe changed.

use crate::fold::Fold;
use crate::{ContentOf, Late, Recipe, StepKey, StepKeys};

/// More keys than these are not worth their requests.
const MOST: usize = 4;

impl Fold<'_, '_> {
    /// The keys of a step on top of those before it. For each key of the step before, best first, there is one with the
    /// content of what the step reads, where that is known, and one with the best key of the stage it is read from: a
    /// later build may know only the one or the other.
    pub(crate) fn keys_of(&self, recipe: &Recipe, late: &[Late]) -> StepKeys {
        let own = recipe.key();
        let mut content: Vec<StepKey> = Vec::new();
        for by_answer in [true, false] {
            for parent in self.keys.content.iter().chain([&self.keys.recipe]) {
                let mut other = recipe.onto(*parent);
                for Late { field, question } in late {
                    let answer = self.stages.facts.find_content(question).filter(|_| by_answer);
                    other = match (answer, &question.of) {
                        (Some(answer), _) => other.with(field, answer),
                        (None, ContentOf::Stage(place)) => {
                            other.with(field, self.scopes[*place].keys.best().hex())
                        }
                        (None, _) => other,
                    };
                }
                let key = other.key();
                if key != own && !content.contains(&key) && content.len() < MOST {
                    content.push(key);
                }
            }
        }
        StepKeys { recipe: own, content }
    }
}
