//! Layers to file trees and back: the path jail, extraction, change detection, layer writing.
