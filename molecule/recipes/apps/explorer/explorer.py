import streamlit as st

VERSION = 1

st.title(f"Explorer {VERSION}")

count = st.session_state.setdefault("count", 0)
if st.button("Add"):
    count += 1
    st.session_state.count = count
st.write(f"Count: {count}")

file = st.file_uploader("A text file")
if file is not None:
    st.write(f"{len(file.getvalue().split())} words")
