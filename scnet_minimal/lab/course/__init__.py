"""The notebooks as a course: finding them, their pages, the students' copies, grading, badges."""
