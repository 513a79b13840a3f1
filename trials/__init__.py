"""Makes and judges one candidate: prunes the teacher, distils, evaluates and exports the student."""
