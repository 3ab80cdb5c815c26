//! The XML of the thin tools: a small pull parser, and text that is put together by hand.
//!
//! Both are for this one vocabulary: elements with attributes, most of them numbers, and nothing
//! between the elements. Millions of them go by, so nothing is allocated for an element.

mod element;
mod lexer;
mod text;

pub(crate) use element::{Element, Tag, decimal};
pub(crate) use lexer::Lexer;
pub(crate) use text::Text;
