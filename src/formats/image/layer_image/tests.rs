use super::*;
use sums::Sums;
