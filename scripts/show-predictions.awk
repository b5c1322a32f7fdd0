# Prints each message of the second file (lines {"text": "..."}) beside its prediction in the first (`ptune predict`'s lines).
FNR == NR {
    match($0, /"prediction": *"[^"]*"/)
    prediction = substr($0, RSTART, RLENGTH)
    sub(/^"prediction": *"/, "", prediction)
    sub(/"$/, "", prediction)
    predictions[FNR] = prediction
    next
}
FNR == 1 { printf "\n%-12s  %s\n", "PREDICTION", "MESSAGE" }
{
    sub(/^\{"text": *"/, "")
    sub(/"\}$/, "")
    gsub(/\\"/, "\"")
    printf "%-12s  %s\n", predictions[FNR], $0
}
